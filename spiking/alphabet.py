"""Spike alphabets: the values that a neuron can send in one timestep."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Alphabet:
    """The ladder of values {θ ρ^-k, k < n}, of both signs if ``signed``, and silence.

    Binary spikes are ``Alphabet(1, signed=False)``, ternary ones ``Alphabet(1)``. Multi-threshold neurons have n > 1; with
    ρ = 2 a receiver shifts and adds, with ρ = √2 it needs a second stored copy of the weight (DCGS, ICML 2025, has ρ = 2).
    """

    levels: int
    ratio: float = 2.0
    signed: bool = True

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"an alphabet has at least 1 level, got {self.levels}")
        if not self.ratio > 1:
            raise ValueError(f"the ratio of neighbouring levels must be above 1, got {self.ratio}")

    @property
    def kind(self) -> str:
        """What the spikes are: ``binary``, ``ternary``, ``power-of-two`` or ``geometric``."""
        if self.levels == 1:
            return "ternary" if self.signed else "binary"
        return "power-of-two" if self.ratio == 2 else "geometric"

    def magnitudes(self, u: Tensor) -> Tensor:
        """What of ``u`` the alphabet can express: |u|, or only its positive part for unsigned spikes."""
        return u.abs() if self.signed else u.clamp(min=0)

    def quantize(self, u: Tensor, threshold: Tensor) -> Tensor:
        """The nearest value of the alphabet; a tie goes to the larger one (``>=``, as in the literature's neurons).

        Not differentiable: see `vit2snn.spiking.coding.emit`.

        Args:
            u: any shape.
            threshold: θ > 0, the largest level; broadcasts against ``u``.
        """
        y = self.magnitudes(u).div_(threshold)
        fires = y >= self.ratio ** (1 - self.levels) / 2
        if self.levels == 1:
            level = y.fill_(1.0)
        else:
            # A level ends half-way to its upper neighbour, (1 + 1/ρ)/2 below it: a constant distance on the log scale.
            step = math.log2(self.ratio)
            k = y.mul_(2 / (1 + 1 / self.ratio)).log2_().div_(-step).ceil_().clamp_(0, self.levels - 1)
            level = k.mul_(-step).exp2_()
        spikes = level.mul_(fires).mul_(threshold)
        return spikes.copysign_(u) if self.signed else spikes
