"""The time loops of neurons for GPUs, in Triton: what `neurons.c` does, operation by operation in the same order.

Launched by `gpu`, without fused multiply-adds, so that spikes are the same to the last bit. Conditions are written as
``where``, because the minimum and maximum of Triton lose values that are not finite. Values are read in their own type,
computed with in float32, and written in the type of where they go.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _spread(spike, u):
    """The spike, NaN where what it is of is not finite."""
    return spike + 0.0 * u


@triton.jit
def _rounded(u, threshold, gain, floor, least, levels, at, apart, valid, STEPS: tl.constexpr, SIGNED: tl.constexpr):
    """The spike for u. The levels within an octave are read from ``levels + at``, ``apart`` from one to the next."""
    y = tl.abs(u) if SIGNED else tl.where(u < 0.0, 0.0, u)
    z = y * gain
    power = (z.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    level = power
    for k in tl.static_range(STEPS):
        above = power * tl.load(levels + at + (3 + k) * apart, mask=valid, other=0.0)
        level = tl.where(z >= above, above, level)
    level = tl.where(level < floor, floor, level)
    level = tl.where(level > 1.0, 1.0, level) * threshold
    level = tl.where(y >= least, level, 0.0)
    if SIGNED:
        level = tl.where(u.to(tl.int32, bitcast=True) < 0, -level, level)
    return _spread(level, u)


@triton.jit
def _table(offsets, row, column, inside, STEP: tl.constexpr, ALIGNED: tl.constexpr):
    """Where rows find what has a value for each of theirs (STEP), or one for all."""
    start = tl.load(offsets + row, mask=inside, other=0)
    if STEP and ALIGNED:  # which the compiler cannot know, and without which it reads value by value
        start = tl.multiple_of(start, 16)
    return start[:, None] + column[None, :] if STEP else start[:, None]


@triton.jit
def coded(
    x, before, out, after, sent, prior, bias, least, levels, coefficients, offsets,
    timesteps, images, rows, width, x_time, x_image, bias_time, least_time, levels_time, apart,
    PRIOR_STEP: tl.constexpr, BIAS_STEP: tl.constexpr, LEAST_STEP: tl.constexpr, LEVELS_STEP: tl.constexpr,
    STARTED: tl.constexpr, KEPT: tl.constexpr, TOLD: tl.constexpr, BIASED: tl.constexpr, FADES: tl.constexpr,
    SIGNED: tl.constexpr, STEPS: tl.constexpr, COUNT: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The timesteps of a coded neuron.

    ``x`` has a timestep every ``x_time`` values and an image every ``x_image``; ``offsets`` [5, rows] tell where rows of an
    image begin in it and in the tables. ``before`` is m[-1] where STARTED, else the prior; ``out`` takes m of all timesteps,
    ``after`` the last of them where KEPT, ``sent`` the spikes where TOLD: [timesteps, COUNT, images, rows, width].
    ``coefficients`` [timesteps, 4] are a, 1 - a, 1 / b and b, and a is 1 unless it FADES.
    """
    blocks = tl.cdiv(rows, ROWS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside, valid = (row < rows)[:, None], (row < rows)[:, None] & (column < width)[None, :]
    place = image * rows * width + row[:, None] * width + column[None, :]
    size = tl.zeros([], tl.int64) + images  # a product of sizes may be beyond 32 bits
    size = size * rows * width
    x += image * x_image
    at_x = _table(offsets, row, column, row < rows, True, ALIGNED)
    at_prior = _table(offsets + rows, row, column, row < rows, PRIOR_STEP, ALIGNED)
    at_bias = _table(offsets + 2 * rows, row, column, row < rows, BIAS_STEP, ALIGNED)
    at_least = _table(offsets + 3 * rows, row, column, row < rows, LEAST_STEP, ALIGNED)
    at_levels = _table(offsets + 4 * rows, row, column, row < rows, LEVELS_STEP, ALIGNED)
    in_levels = valid if LEVELS_STEP else inside
    rest = tl.load(prior + at_prior, mask=valid if PRIOR_STEP else inside, other=0.0)
    m = tl.load(before + place, mask=valid, other=0.0) if STARTED else tl.broadcast_to(rest, [ROWS, WIDTH])
    for _ in range(timesteps):
        held = m
        if FADES:
            held = tl.load(coefficients) * m + tl.load(coefficients + 1) * rest
        left = (tl.load(x + at_x, mask=valid, other=0.0).to(tl.float32) - held) * tl.load(coefficients + 2)
        threshold = tl.load(levels + at_levels, mask=in_levels, other=1.0)
        gain = tl.load(levels + at_levels + apart, mask=in_levels, other=1.0)
        floor = tl.load(levels + at_levels + 2 * apart, mask=in_levels, other=1.0)
        smallest = tl.load(least + at_least, mask=valid if LEAST_STEP else inside, other=1.0)
        total = tl.zeros([ROWS, WIDTH], tl.float32)
        for n in tl.static_range(COUNT):
            spikes = _rounded(left, threshold, gain, floor, smallest, levels, at_levels, apart, in_levels, STEPS, SIGNED)
            if TOLD:
                tl.store(sent + place, spikes, mask=valid)
                sent += size
            total = total + spikes if n else spikes
            left = left - spikes
        if BIASED:
            total += tl.load(bias + at_bias, mask=valid if BIAS_STEP else inside, other=0.0)
            bias += bias_time
        m = held + tl.load(coefficients + 3) * total
        tl.store(out + place, m, mask=valid)
        x += x_time
        out += size
        least += least_time
        levels += levels_time
        coefficients += 4
    if KEPT:
        tl.store(after + place, m, mask=valid)


@triton.jit
def _charged(x, v, leak, DECAYS: tl.constexpr):
    return v + (x - v) * leak if DECAYS else v - v * leak + x


@triton.jit
def _settled(h, s, threshold, reset, HARD: tl.constexpr):
    return h - s * (h - reset) if HARD else h - s * threshold


@triton.jit
def _fired(h, threshold, levels, SENDS: tl.constexpr):
    if SENDS == "integer":
        spikes = tl.floor(tl.div_rn(h, tl.zeros_like(h) + threshold) + 0.5)
        spikes = tl.where(spikes < 0.0, 0.0, spikes)
        spikes = tl.where(spikes > levels, levels, spikes)
    else:
        spikes = tl.where(h >= threshold, 1.0, 0.0)
        if SENDS == "ternary":
            spikes -= tl.where(h <= -threshold, 1.0, 0.0)
    return _spread(spikes, h)


@triton.jit
def membrane_forward(
    x, before, spikes, after, leak, threshold, start, reset, levels, timesteps, size, x_time,
    LEARNED: tl.constexpr, DECAYS: tl.constexpr, HARD: tl.constexpr, SENDS: tl.constexpr,
    STARTED: tl.constexpr, KEPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Spikes of the timesteps of ``size`` neurons; ``before`` is v[-1] where STARTED, ``after`` takes the last v where KEPT."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = place < size
    if LEARNED:
        leak = tl.load(leak)
    v = tl.load(before + place, mask=valid, other=0.0) if STARTED else tl.zeros([BLOCK], tl.float32) + start
    for _ in range(timesteps):
        h = _charged(tl.load(x + place, mask=valid, other=0.0).to(tl.float32), v, leak, DECAYS)
        s = _fired(h, threshold, levels, SENDS)
        tl.store(spikes + place, s, mask=valid)
        v = _settled(h, s, threshold, reset, HARD)
        x += x_time
        spikes += size
    if KEPT:
        tl.store(after + place, v, mask=valid)


@triton.jit
def _slope(u, alpha, SURROGATE: tl.constexpr):
    """The shapes of `surrogate`."""
    size = tl.abs(alpha * u)
    if SURROGATE == "sigmoid":
        decayed = tl.exp(-size)
        return alpha * decayed / ((1.0 + decayed) * (1.0 + decayed))
    elif SURROGATE == "atan":
        return alpha / 2 / (1.0 + (1.5707963267948966 * size) * (1.5707963267948966 * size))
    elif SURROGATE == "triangle":
        return tl.where(size < 1.0, alpha * (1.0 - size), 0.0)
    elif SURROGATE == "rectangle":
        return tl.where(tl.abs(u) < 0.5 / alpha, alpha, 0.0)
    else:
        return tl.where(tl.abs(u) <= 1.0 / alpha, alpha / 2, 0.01)


@triton.jit
def membrane_backward(
    x, before, grad_spikes, grad_after, grad_x, grad_before, leak, threshold, start, reset, alpha, timesteps, size, x_time,
    DECAYS: tl.constexpr, HARD: tl.constexpr, DETACHED: tl.constexpr, SURROGATE: tl.constexpr,
    STARTED: tl.constexpr, CONTINUED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of `membrane_forward` of binary neurons.

    The membranes are computed again, and wait in ``grad_x`` for the way back: each thread reads there what it wrote itself.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = place < size
    v = tl.load(before + place, mask=valid, other=0.0) if STARTED else tl.zeros([BLOCK], tl.float32) + start
    for _ in range(timesteps):
        h = _charged(tl.load(x + place, mask=valid, other=0.0), v, leak, DECAYS)
        tl.store(grad_x + place, h, mask=valid)
        v = _settled(h, _fired(h, threshold, 1.0, "binary"), threshold, reset, HARD)
        x += x_time
        grad_x += size
        grad_spikes += size
    tl.debug_barrier()
    grad_v = tl.load(grad_after + place, mask=valid, other=0.0) if CONTINUED else tl.zeros([BLOCK], tl.float32)
    for _ in range(timesteps):
        grad_x -= size
        grad_spikes -= size
        h = tl.load(grad_x + place, mask=valid, other=0.0)
        slope = _slope(h - threshold, alpha, SURROGATE)
        grad = slope * tl.load(grad_spikes + place, mask=valid, other=0.0)
        if not DETACHED:
            grad -= slope * (grad_v * (h if HARD else threshold))
        grad += tl.where(h < threshold, grad_v, 0.0) if HARD else grad_v
        tl.store(grad_x + place, grad * leak if DECAYS else grad, mask=valid)
        grad_v = grad * (1.0 - leak)
    tl.store(grad_before + place, grad_v, mask=valid)


@triton.jit
def innovations(
    x, before, prior, offsets, counts, keep, renew, scale, images, rows, width, x_image,
    PRIOR_STEP: tl.constexpr, STARTED: tl.constexpr, FADES: tl.constexpr, SIGNED: tl.constexpr,
    FIRST: tl.constexpr, BINS: tl.constexpr, ROOM: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Adds the magnitudes of the innovations of a timestep to ``counts`` [BINS]: see `neurons.c`.

    ROOM is a power of two above BINS: what is there beyond takes the places of a block that hold nothing.
    """
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(width, WIDTH)
    found = tl.zeros([ROOM], tl.int32)
    for block in range(tl.program_id(0), images * down * across, tl.num_programs(0)):
        image = (block // (down * across)).to(tl.int64)
        row = block // across % down * ROWS + tl.arange(0, ROWS)
        column = block % across * WIDTH + tl.arange(0, WIDTH)
        inside, valid = (row < rows)[:, None], (row < rows)[:, None] & (column < width)[None, :]
        at_x = _table(offsets, row, column, row < rows, True, ALIGNED)
        at_prior = _table(offsets + rows, row, column, row < rows, PRIOR_STEP, ALIGNED)
        value = tl.load(x + image * x_image + at_x, mask=valid, other=0.0)
        rest = tl.load(prior + at_prior, mask=valid if PRIOR_STEP else inside, other=0.0)
        held = tl.broadcast_to(rest, [ROWS, WIDTH])
        if STARTED:
            place = image * rows * width + row[:, None] * width + column[None, :]
            held = tl.load(before + place, mask=valid, other=0.0)
        if FADES:
            held = keep * held + renew * rest
        u = (value.to(tl.float32) - held) * scale
        y = tl.abs(u) if SIGNED else tl.where(u > 0.0, u, 0.0)
        bin = (y.to(tl.int32, bitcast=True) >> 20) - FIRST
        bin = tl.where(bin < 0, 0, tl.where(bin >= BINS, BINS - 1, bin))
        found += tl.histogram(tl.ravel(tl.where(valid, bin, ROOM - 1)), ROOM)
    place = tl.arange(0, ROOM)
    tl.atomic_add(counts + place, found.to(tl.int64), mask=place < BINS)
