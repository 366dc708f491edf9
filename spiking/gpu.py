"""Neurons on GPUs: the kernels of `gpu_kernels`, which Triton compiles when they are first needed, and keeps in its cache.

They compute what the references in torch compute, to the last bit. Triton comes with torch on Linux. Where it is missing, or
cannot compile for the GPU, neurons use the references.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from .dynamics import Dynamics
from .layout import layout
from .native import is_called

BLOCK = 1024  # values of a program
PROGRAMS = 1024  # of a histogram: more than a GPU runs at once
OPTIONS = {"enable_fp_fusion": False}  # a multiplication and an addition round twice, as they do in torch
READ = (torch.float32, torch.float16, torch.bfloat16)

logger = logging.getLogger("vit2snn")


def can_compute(x: Tensor) -> bool:
    """Whether the kernels can compute with ``x``: on a GPU, and of at most single precision."""
    return x.is_cuda and x.dtype in READ and is_called(x) and is_available(x.get_device())


@cache
def is_available(device: int) -> bool:
    """Whether Triton compiles for this GPU, which a kernel shows; where it does not, that is logged once."""
    x = torch.ones(1, 1, device=torch.device("cuda", device))
    try:
        membrane_forward(x, None, torch.empty_like(x), None, Dynamics(1.0))
    except Exception as error:  # whatever a compiler may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("Triton's kernels cannot be used on this GPU, so neurons are several times slower: %s", reason)
        return False
    return True


def _launch(name: str, grid: tuple[int, ...], x: Tensor, *arguments: Any) -> None:
    """Run a kernel where ``x``, its first argument, lies."""
    from . import gpu_kernels

    with torch.cuda.device_of(x):
        getattr(gpu_kernels, name)[grid](x, *arguments, **OPTIONS)


class Coded:
    """What a coded neuron does in one or several timesteps.

    Args:
        coefficients: (a_t, b_t) of each timestep.
        is_signed: whether spikes have a sign.
        prior: r.
        bias: c[t] of each timestep; None for none.
        least: the smallest magnitude that fires in each timestep.
        levels: tables of each timestep, of shapes that broadcast: threshold, gain, floor, and those of the steps of an octave.
        count: spikes in a burst.
    """

    def __init__(
        self, coefficients: Sequence[tuple[float, float]], is_signed: bool, prior: Tensor, bias: Sequence[Tensor | None],
        least: Sequence[Tensor], levels: Sequence[Sequence[Tensor]], count: int = 1,
    ) -> None:  # fmt: skip
        given = next((one for one in bias if one is not None), None)
        biases = [torch.zeros_like(given) if one is None else one for one in bias] if given is not None else []
        self.fades = any(a != 1 for a, _ in coefficients)
        self.coefficients = _on_device(tuple(coefficients), prior.device)
        self.is_signed, self.count = is_signed, count
        self.prior = prior.contiguous()
        self.bias = torch.stack(biases) if biases else None
        self.least = torch.stack(list(least))
        self.steps = max(map(len, levels)) - 3
        self.levels = torch.stack([_stacked(tables, self.steps) for tables in levels])  # [T, tables, ...]

    def respond(
        self, frames: Tensor, before: Tensor | None, out: Tensor, after: Tensor | None = None, sent: Tensor | None = None
    ) -> None:
        """Put m[t] into ``out`` for the targets x[t], both ``[T, B, ...]``; out is contiguous.

        Args:
            frames: x.
            before: m before the first timestep, ``[B, ...]``; None for the prior.
            out: of any floating-point type.
            after: takes the last m in float32, if it is given.
            sent: takes the spikes ``[T, count, B, ...]`` in float32, if it is given.
        """
        frames = side_by_side(frames, 2)
        absent = self.prior if self.bias is None else self.bias[0]
        shapes = tuple(tuple(table.shape) for table in (self.prior, absent, self.least[0], self.levels[0, 0]))
        found = layout(tuple(frames.shape[2:]), frames.stride()[2:], shapes, frames.device)
        (down, across), tile = _tiles(found.rows, found.width)
        images, apart = frames.shape[1], self.levels[0, 0].numel()
        _launch(
            "coded", (images * down, across), frames, None if before is None else before.contiguous(), out, after, sent,
            self.prior, self.bias, self.least, self.levels, self.coefficients, found.offsets,
            len(frames), images, found.rows, found.width, frames.stride(0), frames.stride(1),
            absent.numel(), self.least[0].numel(), apart * self.levels.shape[1], apart,
            *found.varies, before is not None, after is not None, sent is not None, self.bias is not None, self.fades,
            self.is_signed, self.steps, self.count, found.aligned, *tile,
        )  # fmt: skip


def innovations(
    x: Tensor, before: Tensor | None, prior: Tensor, coefficients: tuple[float, float], is_signed: bool, first: int, bins: int
) -> Tensor:
    """Counts ``[bins]`` of the magnitudes of what a coded neuron has to send in a timestep: see ``innovations`` in `neurons.c`.

    Args:
        x: the target ``[B, ...]``.
        before: m[t-1], the same shape; None for the prior.
        prior: r, which broadcasts against an image's input.
        coefficients: (a_t, b_t).
        is_signed: whether spikes have a sign.
        first: the bits, without the last 20, with which the magnitudes of the first bin begin.
        bins: eight to an octave.
    """
    x, prior, (a, b) = side_by_side(x, 1), prior.contiguous(), coefficients
    found = layout(tuple(x.shape[1:]), x.stride()[1:], (tuple(prior.shape),), x.device)
    (down, across), tile = _tiles(found.rows, found.width)
    counts = torch.zeros(bins, dtype=torch.int64, device=x.device)
    _launch(
        "innovations", (min(len(x) * down * across, PROGRAMS),), x, None if before is None else before.contiguous(), prior,
        found.offsets, counts, a, 1 - a, 1 / b, len(x), found.rows, found.width, x.stride(0),
        *found.varies, before is not None, a != 1, is_signed, first, bins, _power(bins + 1), found.aligned, *tile,
    )  # fmt: skip
    return counts


def membrane_forward(frames: Tensor, before: Tensor | None, spikes: Tensor, after: Tensor | None, dynamics: Dynamics) -> None:
    """Put the spikes of ``frames`` ``[T, ...]`` into ``spikes``, and the last membrane into ``after`` unless it is None.

    Timesteps lie in memory without gaps and alike, those of the spikes one after the other; membranes are of float32.
    """
    size = frames[0].numel()
    _launch(
        "membrane_forward", (-(-size // BLOCK),), frames, before, spikes, after, dynamics.leak, *_numbers(dynamics),
        float(dynamics.levels), len(frames), size, frames.stride(0),
        isinstance(dynamics.leak, Tensor), dynamics.decays, dynamics.reset is not None, dynamics.sends,
        before is not None, after is not None, BLOCK,
    )  # fmt: skip


def membrane_backward(
    frames: Tensor, before: Tensor | None, grad_spikes: Tensor, grad_after: Tensor | None, grad_x: Tensor, grad_before: Tensor,
    dynamics: Dynamics,
) -> None:  # fmt: skip
    """Put the gradients into ``grad_x`` and ``grad_before``; all of float32, and in memory as for `membrane_forward`."""
    size = frames[0].numel()
    _launch(
        "membrane_backward", (-(-size // BLOCK),), frames, before, grad_spikes, grad_after, grad_x, grad_before,
        dynamics.leak, *_numbers(dynamics), float(dynamics.surrogate.alpha),
        len(frames), size, frames.stride(0), dynamics.decays, dynamics.reset is not None, dynamics.detached,
        dynamics.surrogate.shape, before is not None, grad_after is not None, BLOCK,
    )  # fmt: skip


def _numbers(dynamics: Dynamics) -> tuple[float, float, float]:
    """The threshold, the membrane at rest and the one after a hard reset: floats, as for integers there are other kernels."""
    return float(dynamics.threshold), float(dynamics.start), float(dynamics.reset or 0.0)


def side_by_side(x: Tensor, axes: int) -> Tensor:
    """``x`` with values along the last axis of images, which are behind so many axes, side by side; a copy if need be."""
    last = next((axis for axis in range(x.ndim - 1, axes - 1, -1) if x.shape[axis] > 1), None)
    return x if last is None or x.stride(last) == 1 else x.contiguous()


def _stacked(tables: Sequence[Tensor], steps: int) -> Tensor:
    """``[tables, ...]``, with steps that no value reaches in place of those that are missing."""
    shown = torch.broadcast_tensors(*tables)
    return torch.stack([*shown, *[torch.full_like(shown[0], torch.inf)] * (3 + steps - len(shown))])


@lru_cache(maxsize=4096)
def _on_device(coefficients: tuple[tuple[float, float], ...], device: torch.device) -> Tensor:
    """``[T, 4]``: a, 1 - a, 1 / b and b."""
    return torch.tensor([(a, 1 - a, 1 / b, b) for a, b in coefficients], device=device)


def _tiles(rows: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many blocks down and across, and the rows and columns of one."""
    columns = min(_power(width), BLOCK)
    height = min(_power(rows), BLOCK // columns)
    return (-(-rows // height), -(-width // columns)), (height, columns)


def _power(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()
