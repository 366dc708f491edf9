"""The timesteps of a neuron with a membrane as one differentiable function: backpropagation through time written out.

Automatic differentiation of the same timesteps records a dozen operations for each and keeps their operands; this keeps the
input alone, and computes the membranes again on the way back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import gpu
from .dynamics import Dynamics
from .native import address, checked, compiling, is_eager, kernels
from .operators import operator


def unrolled(frames: Tensor, v: Tensor | None, dynamics: Dynamics, keeps: bool = True) -> tuple[Tensor, Tensor | None]:
    """Spikes ``[T, ...]`` and the last membrane, of input currents ``[T, ...]`` and the membrane before them.

    Differentiable where `Dynamics.differentiable`.

    Args:
        frames: x.
        v: v[-1], the shape of a timestep; None at rest.
        dynamics: of the neuron.
        keeps: whether the last membrane is wanted; it is None otherwise.
    """
    if compiling(frames) and not isinstance(dynamics.leak, Tensor):
        spikes, last = _operator(frames, v, *dynamics.scalars)
        return spikes, last if keeps else None
    if torch.is_grad_enabled():
        spikes, last = _Unrolled.apply(frames, v, dynamics, keeps)
        return spikes, last
    return _forward(frames, v, dynamics, keeps)


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frames: Tensor, v: Tensor | None, dynamics: Dynamics, keeps: bool) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(frames, v)
        ctx.dynamics = dynamics
        ctx.is_eager = is_eager()
        ctx.set_materialize_grads(False)
        return _forward(frames, v, dynamics, keeps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor | None, None, None]:
        frames, v = ctx.saved_tensors
        grad_spikes, grad_last = grads
        grad_spikes = torch.zeros_like(frames) if grad_spikes is None else grad_spikes
        # The way back on a GPU is another thread's, which knows nothing of `eager`.
        way_back = backward_reference if ctx.is_eager else _backward
        grad_x, grad_v = way_back(frames, v, grad_spikes, grad_last, ctx.dynamics)
        return grad_x, None if v is None else grad_v, None, None


def _forward(frames: Tensor, v: Tensor | None, dynamics: Dynamics, keeps: bool) -> tuple[Tensor, Tensor | None]:
    library, on_gpu = kernels(frames), gpu.can_compute(frames)
    if library is None and not on_gpu:
        spikes, last = forward_reference(frames, v, dynamics)
        return spikes, last if keeps else None
    frames = _in_order(frames)
    spikes = frames.new_empty(frames.shape).as_strided(frames.shape, (frames[0].numel(), *frames.stride()[1:]))
    after = torch.empty_like(frames[0], dtype=torch.float32) if keeps else None
    before = None if v is None else _laid_out(v, frames[0])
    if on_gpu:
        gpu.membrane_forward(frames, before, spikes, after, dynamics)
    elif library is not None:
        pointers = address(frames), frames.stride(0), address(before), address(spikes), address(after)
        library.membrane_forward(dynamics.constants(), *pointers, len(frames), frames[0].numel())
    return spikes, after


def _backward(
    frames: Tensor, v: Tensor | None, grad_spikes: Tensor, grad_last: Tensor | None, dynamics: Dynamics
) -> tuple[Tensor, Tensor]:
    library, on_gpu = kernels(frames), gpu.can_compute(frames) and frames.dtype == torch.float32
    if library is None and not on_gpu:
        return backward_reference(frames, v, grad_spikes, grad_last, dynamics)
    frames = _in_order(frames)
    x = frames[0]
    grad_x = frames.new_empty(frames.shape).as_strided(frames.shape, (x.numel(), *frames.stride()[1:]))
    grad_v = torch.empty_like(x)
    before, grad_last = (None if given is None else _laid_out(given, x) for given in (v, grad_last))
    tensors = before, _laid_out(grad_spikes, grad_x), grad_last, grad_x, grad_v
    if on_gpu:
        gpu.membrane_backward(frames, *tensors, dynamics)
    elif library is not None:
        arguments = dynamics.constants(), address(frames), frames.stride(0), *map(address, tensors), len(frames), x.numel()
        checked(library.membrane_backward(*arguments))
    return grad_x, grad_v


def _in_order(frames: Tensor) -> Tensor:
    """``frames`` so that each timestep has no gaps in memory, in whatever order of axes; a copy where it had."""
    x, run = frames[0], 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != run:
            return frames.contiguous()
        run *= size
    return frames


def _laid_out(values: Tensor, like: Tensor) -> Tensor:
    """``values`` in memory as ``like`` is."""
    return values if values.stride() == like.stride() else torch.empty_like(like, dtype=values.dtype).copy_(values)


def forward_reference(frames: Tensor, v: Tensor | None, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    """What the kernel computes: spikes and the last membrane."""
    v = torch.full_like(frames[0], dynamics.start) if v is None else v
    spikes = []
    for x in frames:
        h = dynamics.charge(x, v)
        s = dynamics.fire(h)
        v = dynamics.settle(h, s)
        spikes.append(s)
    return torch.stack(spikes), v


def backward_reference(
    frames: Tensor, v: Tensor | None, grad_spikes: Tensor, grad_last: Tensor | None, dynamics: Dynamics
) -> tuple[Tensor, Tensor]:
    """What the kernel computes: the gradients of the input and of the membrane before it."""
    v = torch.full_like(frames[0], dynamics.start) if v is None else v
    membranes = []
    for x in frames:
        h = dynamics.charge(x, v)
        v = dynamics.settle(h, dynamics.fire(h))
        membranes.append(h)
    leak, threshold, hard = dynamics.leak, dynamics.threshold, dynamics.reset is not None
    grad_v = torch.zeros_like(frames[0]) if grad_last is None else grad_last
    grads = []
    for h, grad_s in zip(reversed(membranes), grad_spikes.flip(0), strict=True):
        slope = dynamics.surrogate.derivative(h - threshold)
        grad_h = slope * grad_s  # by the spike that is sent, and below by the membrane that is kept
        if not dynamics.detached:
            grad_h = grad_h - slope * (grad_v * (h if hard else threshold))
        grad_h = grad_h + (torch.where(h < threshold, grad_v, 0.0) if hard else grad_v)
        grads.append(grad_h * (leak if dynamics.decays else 1.0))
        grad_v = grad_h * (1 - leak)
    return torch.stack(grads[::-1]), grad_v


# The operators' results are contiguous, whatever the layout of their arguments.


def _forth(frames: Tensor, v: Tensor | None, *scalars: Any) -> tuple[Tensor, Tensor]:
    spikes, last = _forward(frames, v, Dynamics.of(*scalars), keeps=True)
    assert last is not None
    return spikes.contiguous(), last.contiguous()


def _back(frames: Tensor, v: Tensor | None, grad_spikes: Tensor, grad_last: Tensor, *scalars: Any) -> tuple[Tensor, Tensor]:
    grad_x, grad_v = _backward(frames, v, grad_spikes, grad_last, Dynamics.of(*scalars))
    return grad_x.contiguous(), grad_v.contiguous()


def _like(frames: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return frames.new_empty(frames.shape), frames.new_empty(frames.shape[1:])


SCALARS = (
    "float threshold, float leak, bool decays, float? reset, float start, str sends, int levels, bool detached, str surrogate, "
    "float alpha) -> (Tensor, Tensor)"
)
_operator = operator(f"membrane_forward(Tensor frames, Tensor? v, {SCALARS}", _forth, _like)
_way_back = operator(
    f"membrane_backward(Tensor frames, Tensor? v, Tensor grad_spikes, Tensor grad_last, {SCALARS}", _back, _like
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    frames, v, *ctx.scalars = inputs
    ctx.save_for_backward(frames, v)


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    frames, v = ctx.saved_tensors
    grad_x, grad_v = _way_back(frames, v, *grads, *ctx.scalars)
    return grad_x, None if v is None else grad_v, *[None] * len(ctx.scalars)


torch.library.register_autograd("vit2snn::membrane_forward", _differentiate, setup_context=_save)
