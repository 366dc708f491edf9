"""The timesteps of a neuron as one differentiable function: backpropagation through time written out.

Automatic differentiation of the same timesteps records a dozen operations for each and keeps their operands; this keeps the
membrane potentials alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .surrogate import Surrogate


class Dynamics(NamedTuple):
    """A neuron with h[t] = keep v[t-1] + gain x[t] and s[t] = [h[t] >= θ].

    A spike sets v[t] to 0 (``hard``) or leaves h[t] - θ. ``detached``: no gradient passes through the spike of the reset.
    """

    keep: float
    gain: float
    threshold: float
    hard: bool
    detached: bool
    surrogate: Surrogate


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frames: Tensor, v: Tensor, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
        spikes = torch.empty_like(frames)
        potentials = torch.empty_like(spikes)
        for x, s, h in zip(frames, spikes, potentials, strict=True):
            torch.mul(x, dynamics.gain, out=h)
            h.add_(v, alpha=dynamics.keep)
            torch.ge(h, dynamics.threshold, out=s)
            v = torch.addcmul(h, h, s, value=-1) if dynamics.hard else torch.sub(h, s, alpha=dynamics.threshold)
        ctx.save_for_backward(potentials)
        ctx.dynamics = dynamics
        return spikes, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (potentials,) = ctx.saved_tensors
        dynamics: Dynamics = ctx.dynamics
        grad_spikes, grad_v = grads
        grad_x = torch.empty_like(potentials)
        # One timestep after the other, so that what is computed for it stays in the cache.
        for t in reversed(range(len(potentials))):
            h = potentials[t]
            slope = dynamics.surrogate.derivative(h - dynamics.threshold)
            grad_h = slope * grad_spikes[t]  # by the spike that is sent, and below by the membrane that is kept
            if not dynamics.detached:
                grad_h.addcmul_(slope, grad_v * (h if dynamics.hard else dynamics.threshold), value=-1)
            grad_h.add_(grad_v * (h < dynamics.threshold) if dynamics.hard else grad_v)
            torch.mul(grad_h, dynamics.gain, out=grad_x[t])
            grad_v = grad_h.mul_(dynamics.keep)
        return grad_x, grad_v, None


def unrolled(frames: Tensor, v: Tensor, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, ...]`` and the last membrane potential, of input currents ``[T, ...]`` and the potential before them."""
    spikes, last = _Unrolled.apply(frames, v, dynamics)
    return spikes, last
