"""Surrogate gradients: what backpropagation uses as the derivative of the spike s = [u >= 0].

Neftci, Mostafa, Zenke, "Surrogate Gradient Learning in Spiking Neural Networks", IEEE SPM 2019. Each surrogate is the
derivative of a smooth or piecewise step from 0 to 1 around the threshold; α is its steepness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .alphabet import spread


def _sigmoid(u: Tensor, alpha: float) -> Tensor:
    s = (alpha * u).sigmoid()
    return torch.addcmul(s, s, s, value=-1).mul_(alpha)


def _atan(u: Tensor, alpha: float) -> Tensor:
    return alpha / 2 / (1 + (math.pi / 2 * alpha * u).square())


def _triangle(u: Tensor, alpha: float) -> Tensor:
    return alpha * (1 - alpha * u.abs()).clamp(min=0)


def _rectangle(u: Tensor, alpha: float) -> Tensor:
    return alpha * (u.abs() < 0.5 / alpha).to(u.dtype)


def _piecewise(u: Tensor, alpha: float) -> Tensor:
    return torch.where(u.abs() <= 1 / alpha, alpha / 2, 0.01)


SHAPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "atan": _atan,
    "triangle": _triangle,
    "rectangle": _rectangle,
    "piecewise": _piecewise,
}


@dataclass(frozen=True)
class Surrogate:
    """The derivative that stands in for that of the spike, as a function of u = h - threshold.

    ========== =========================== ============================================================
    shape      ds/du                       source
    ========== =========================== ============================================================
    sigmoid    α σ(αu) (1 - σ(αu))         Spikformer and QKFormer use it with α = 4
    atan       α/2 / (1 + (π α u / 2)²)    Fang et al., ICCV 2021 (PLIF); α = 2 there
    triangle   α max(0, 1 - α|u|)          Bellec et al., NeurIPS 2018; Esser et al., PNAS 2016
    rectangle  α [|u| < 1/(2α)]            Wu et al., Frontiers in Neuroscience 2018 (STBP)
    piecewise  α/2 if |u| <= 1/α else 0.01 a leaky piecewise line, so that silent neurons still learn
    ========== =========================== ============================================================

    Args:
        shape: a row of the table.
        alpha: α, the steepness, per unit of membrane potential.

    Raises:
        ValueError: the shape is none of these, or α is not positive.
    """

    shape: str = "sigmoid"
    alpha: float = 4.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"there is no surrogate {self.shape!r}; choose one of {', '.join(SHAPES)}")
        if not self.alpha > 0:
            raise ValueError(f"the steepness of a surrogate is positive, got {self.alpha}")

    def derivative(self, u: Tensor) -> Tensor:
        """ds/du, any shape."""
        return SHAPES[self.shape](u, self.alpha)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return spread((u >= 0).to(u.dtype), u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(u), None


def spike(u: Tensor, surrogate: Surrogate) -> Tensor:
    """1 where ``u >= 0`` (a tie fires), else 0; NaN where ``u`` is not finite; differentiable by the surrogate. Any shape."""
    fired: Tensor = _Spike.apply(u, surrogate)
    return fired
