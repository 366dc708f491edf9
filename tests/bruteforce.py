"""Synaptic operations counted one by one, in plain loops that can be read off the definition; nothing of the meter is used.

A signal is a nested list of numbers, of one image in one timestep. An integer n is |n| spikes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from vit2snn.measure import Meter
from vit2snn.spiking import (
    CodedNeuron,
    Event,
    ExpertMixtureAttention,
    ExpertMixturePerceptron,
    Neuron,
    QKMixedAttention,
    QKTokenAttention,
    SpikeDrivenSelfAttention,
    SpikingSelfAttention,
    neurons,
    present_run,
    probing,
    simulate,
)


class Sends(Neuron):
    """Sends what it is given."""

    def step(self, t: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return x, None


@torch.no_grad()
def metered(network: nn.Module, frames: Tensor, chunk: int | None = None) -> Meter:
    """The meter after a run of frames ``[T, B, C, H, W]`` through a network that begins with a neuron."""
    with Meter(network) as meter:
        simulate(network, meter.show(frames), len(frames), chunk)
    return meter


def spent(meter: Meter) -> list[list[tuple[int, int]]]:
    """(accumulates, multiply-accumulates) of each timestep and image."""
    return [[(ac, mac) for ac, mac in images] for images in meter.spent().tolist()]


def each(count: Callable[[Any], int], frames: Tensor) -> list[list[int]]:
    """``count`` of every image in every timestep of ``[T, B, ...]``."""
    return [[count(image) for image in images] for images in frames.tolist()]


def flat(values: Any) -> list[float]:
    return [number for value in values for number in flat(value)] if isinstance(values, list) else [values]


def spikes(values: Any) -> int:
    """All spikes in a signal."""
    return sum(int(abs(value)) for value in flat(values))


def firing(values: Any) -> int:
    """All values of a signal that are not 0."""
    return sum(value != 0 for value in flat(values))


def whole(values: Any) -> bool:
    return all(value == round(value) for value in flat(values))


@cache
def reads(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[list[list[int]], int]:
    """How often a convolution reads each pixel for one output channel, and how often it reads anything, padding included."""
    height, width = size
    times, total = [[0] * width for _ in range(height)], 0
    top = 0
    while top + dilation[0] * (kernel[0] - 1) < height + 2 * padding[0]:
        left = 0
        while left + dilation[1] * (kernel[1] - 1) < width + 2 * padding[1]:
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    y, x = top + i * dilation[0] - padding[0], left + j * dilation[1] - padding[1]
                    total += 1
                    if 0 <= y < height and 0 <= x < width:
                        times[y][x] += 1
            left += stride[1]
        top += stride[0]
    return times, total


def _geometry(conv: nn.Module, image: Any) -> tuple[list[list[int]], int]:
    pairs = [tuple(getattr(conv, name)) for name in ("kernel_size", "stride", "padding", "dilation")]
    if len(pairs[0]) == 1:
        pairs = [(neutral, *pair) for pair, neutral in zip(pairs, (1, 1, 0, 1), strict=True)]
    return reads((len(image[0]), len(image[0][0])), *pairs)


def by_convolution(conv: nn.Module, image: Any) -> int:
    """Each spike of an image ``[C, H, W]`` (or ``[C, L]``) is added to every output that reads its pixel."""
    image = image if isinstance(image[0][0], list) else [[row] for row in image]
    times, _ = _geometry(conv, image)
    outputs = conv.out_channels // conv.groups
    count = 0
    for channel in image:
        for y, row in enumerate(channel):
            for x, value in enumerate(row):
                count += int(abs(value)) * times[y][x] * outputs
    return count


def dense_convolution(conv: nn.Module, image: Any) -> int:
    """Every output multiplies what each of its kernel's weights reads, be it padding."""
    image = image if isinstance(image[0][0], list) else [[row] for row in image]
    _, total = _geometry(conv, image)
    count = 0
    for _ in range(conv.out_channels):
        for _ in range(conv.in_channels // conv.groups):
            count += total
    return count


def by_linear(linear: nn.Linear, rows: Any) -> int:
    """Each spike is added to all outputs of its row."""
    count = 0
    for value in flat(rows):
        for _ in range(int(abs(value))):
            count += linear.out_features
    return count


def dense_linear(linear: nn.Linear, rows: Any) -> int:
    count = 0
    for _ in flat(rows):
        count += linear.out_features
    return count


Matrix = Sequence[Sequence[float]]


def by_matrix(first: Matrix, second: Matrix) -> int:
    """In a product of matrices, each spike of the first adds the values of the second that it meets and that are not 0."""
    met = [sum(value != 0 for value in row) for row in second]
    count = 0
    for row in first:
        for k, value in enumerate(row):
            for _ in range(int(abs(value))):
                count += met[k]
    return count


def product(first: Matrix, second: Matrix) -> list[list[float]]:
    """A product of matrices, number by number."""
    columns = list(zip(*second, strict=True))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in first]


def flipped(matrix: Matrix) -> list[list[float]]:
    return [list(column) for column in zip(*matrix, strict=True)]


def either(first: Matrix, second: Matrix) -> tuple[int, int]:
    """Accumulates of a product of two matrices of spikes: by those of the first, and by those of the second."""
    return by_matrix(first, second), by_matrix(flipped(second), flipped(first))


def together(first: Any, second: Any) -> int:
    """Places at which two binary signals of the same shape both have a spike."""
    return sum(a != 0 and b != 0 for a, b in zip(flat(first), flat(second), strict=True))


Heard = dict[str, list[tuple[Tensor, Tensor]]]
Counts = dict[str, list[list[list[tuple[int, int]]]]]  # of each module's operations, of each timestep and image


@torch.no_grad()
def counted(network: nn.Module, images: int, run: Callable[[], object]) -> Counts:
    """All operations of a run in chunks of one timestep, by module."""
    heard: dict[int, Heard] = defaultdict(lambda: defaultdict(list))
    sent: dict[str, Tensor] = {}

    def send(name: str, event: Event) -> None:
        sent[name] = sum((spike != 0).int() for spike in event.spikes)

    def hear(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        run = present_run()
        assert run is not None
        heard[run.elapsed][name].append((sent.get(f"{name}.neuron", inputs[0]), output))

    handles = [module.register_forward_hook(partial(hear, name)) for name, module in network.named_modules()]
    coded = [name for name, neuron in neurons(network) if isinstance(neuron, CodedNeuron)]
    with probing(network, {name: partial(send, name) for name in coded}):
        run()
    for handle in handles:
        handle.remove()
    counts: Counts = {}
    for t, at in heard.items():
        for name, module in network.named_modules():
            if name in at:
                operations = [_of_image(name, module, at, i, images) for i in range(images)]
                for index in range(len(operations[0])):
                    table = counts.setdefault(name, [])
                    if len(table) <= index:
                        table.append([[(0, 0)] * images for _ in range(len(heard))])
                    table[index][t] = [operation[index] for operation in operations]
    return counts


def _of_image(name: str, module: nn.Module, at: Heard, i: int, images: int) -> list[tuple[int, int]]:
    """(accumulates, multiply-accumulates) of each operation of a module, in one timestep."""

    def out(child: str, call: int = -1) -> Tensor:
        return at[f"{name}.{child}"][call][1][i]

    found = []
    for x, _ in at[name]:
        parts = x.unflatten(0, (images, -1))[i].tolist()
        if isinstance(module, nn.MaxPool2d):
            found.append((firing(parts) if whole(x.tolist()) else len(flat(parts)), 0))
        elif isinstance(module, (nn.LayerNorm, nn.GELU)):
            found.append((0, 5 * len(flat(parts))))
        elif isinstance(module, (nn.Conv2d, nn.Conv1d, nn.Linear)):
            linear = isinstance(module, nn.Linear)
            sparse, dense = (by_linear, dense_linear) if linear else (by_convolution, dense_convolution)
            added = whole(x.tolist())
            by: Any = sparse if added else dense
            count = sum(by(module, part) for part in parts)
            found.append((count, 0) if added else (0, count))
    if found:
        return found
    if isinstance(module, (SpikingSelfAttention, ExpertMixtureAttention)):
        shared = isinstance(module, ExpertMixtureAttention)
        k, v = (out(side).flatten(1) for side in ("key", "value"))
        heads = 1 if shared else module.num_heads
        q, k, v = out("interaction").tolist(), *(side.unflatten(0, (heads, -1)).tolist() for side in (k, v))
        products = _attend(q, k, v)
        if shared:
            gated = out("router").flatten(1).unsqueeze(1) * out("neuron")
            products += [firing(gated.tolist()), spikes(gated.tolist())]
        return [(count, 0) for count in products]
    if isinstance(module, ExpertMixturePerceptron):
        return [(together(out("router").tolist(), out("expand").chunk(2)[1].tolist()), 0)]
    if isinstance(module, SpikeDrivenSelfAttention):
        k, v = out("key").flatten(1), out("value").flatten(1)
        if isinstance(module.erode, nn.MaxPool2d):
            k, v = out("erode", 0).flatten(1), out("erode", 1).flatten(1)
        both = (k * v).unflatten(0, (module.num_heads, -1))
        summed = out("erode", 2) if isinstance(module.erode, nn.MaxPool2d) else both
        q, mask = out("interaction"), out("neuron")
        return [(firing(both.tolist()), 0), (spikes(summed.tolist()), 0), (firing((q * mask).tolist()), 0)]
    if isinstance(module, (QKTokenAttention, QKMixedAttention)):
        q, k = out("interaction"), out("key").flatten(1).unflatten(0, (module.num_heads, -1))
        if isinstance(module, QKTokenAttention):
            pairs = [(q, k, out("neuron"))]
        else:
            half = module.num_heads // 2
            pairs = [(q[:half], k[:half], out("token_neuron")), (q[half:], k[half:], out("channel_neuron"))]
        return [
            (count, 0)
            for query, key, bit in pairs
            for count in (spikes(query.tolist()), together(bit.expand_as(key).tolist(), key.tolist()))
        ]
    return []


def _attend(q: Any, k: Any, v: Any) -> list[int]:
    """The two products of v kᵀ q, in the order that takes less; matrices by head, of channels by tokens."""
    first, second = [], []
    if len(q[0][0]) > len(q[0]):
        mixed = [product(value, flipped(key)) for key, value in zip(k, v, strict=True)]
        first = [either(value, flipped(key)) for key, value in zip(k, v, strict=True)]
        second = [either(mixed[head % len(mixed)], query) for head, query in enumerate(q)]
    else:
        for head, query in enumerate(q):
            first.append(either(flipped(k[head % len(k)]), query))
            second.append(either(v[head % len(v)], product(flipped(k[head % len(k)]), query)))
    return [min(sum(option) for option in zip(*counts, strict=True)) for counts in (first, second)]


def check(meter: Meter, counts: Counts) -> None:
    tallies = defaultdict(list)
    for tally in meter.tallies:
        tallies[tally.module].append(tally)
    assert {name: len(found) for name, found in tallies.items()} == {name: len(c) for name, c in counts.items()}
    for name, operations in counts.items():
        for tally, by_hand in zip(tallies[name], operations, strict=True):
            expected = [[sum(image[kind] for image in images) for images in by_hand] for kind in (0, 1)]
            assert [tally.accumulates.tolist(), tally.multiplies.tolist()] == expected, f"{name} {tally.function}"
    every = [operation for operations in counts.values() for operation in operations]
    images = range(len(every[0][0]))
    assert spent(meter) == [
        [tuple(sum(operation[t][i][kind] for operation in every) for kind in (0, 1)) for i in images]
        for t in range(len(every[0]))
    ]
