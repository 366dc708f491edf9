"""Spike alphabets: the values that a neuron can send in one timestep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Ladder(NamedTuple):
    """The levels of one timestep, all of which broadcast against the value that is coded.

    Attributes:
        threshold: θ > 0, the largest level.
        ratio: ρ > 1 of neighbouring levels.
        silence: magnitudes below this send nothing, where it is more than half the smallest level; infinite for neurons that
            never fire.
    """

    threshold: Tensor
    ratio: Tensor
    silence: Tensor


@dataclass(frozen=True)
class Alphabet:
    """The ladder of values {θ ρ^-k, k < n}, of both signs if ``signed``, and silence.

    Binary spikes are ``Alphabet(1, signed=False)``, ternary ones ``Alphabet(1)``. Multi-threshold neurons have n > 1; with
    ρ = 2 a receiver shifts and adds, with ρ = 2^(1/m) it does so with one of m stored versions of the weight (DCGS, ICML 2025,
    has ρ = 2).
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

    def ladder(self, threshold: Tensor, ratio: Tensor | None = None, silence: Tensor | None = None) -> Ladder:
        """The levels below ``threshold``; with the alphabet's ρ and with rounding to the nearest unless others are given."""
        ratio = torch.full_like(threshold, self.ratio) if ratio is None else ratio
        return Ladder(threshold, ratio, torch.zeros_like(threshold) if silence is None else silence)

    def quantize(self, u: Tensor, ladder: Ladder) -> Tensor:
        """The nearest level, or 0 below the ladder's silence; a tie goes to the larger (``>=``, as in the literature).

        Not differentiable: see `vit2snn.spiking.coding.emit`.
        """
        y = self.magnitudes(u)
        least = torch.maximum(ladder.silence, ladder.threshold * ladder.ratio ** (1 - self.levels) / 2)
        fires = torch.ge(y, least, out=torch.empty_like(y))  # in numbers: a product with booleans is several times slower
        if self.levels == 1:
            spikes = fires
        else:
            # A level ends half-way to its upper neighbour, (1 + 1/ρ)/2 below it: a constant distance on the log scale.
            octaves = ladder.ratio.log2()
            k = y.mul_(2 / (1 + 1 / ladder.ratio) / ladder.threshold).log2_().div_(-octaves).ceil_().clamp_(0, self.levels - 1)
            spikes = k.mul_(-octaves).exp2_().mul_(fires)
        spikes.mul_(ladder.threshold)
        return spikes.copysign_(u) if self.signed else spikes
