"""Spike alphabets: the values that a neuron can send in one timestep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .floats import copysign, octave

CLOSE = 1e-6
"""Ratios that are so close, relatively, are the same: they have been in float32."""


MIDDLE = 2.0**-10
"""A centred neuron fires for what is above this share of θ. At 0 rounding would decide of values that are the same in all
images, and so lack nothing."""


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


class Levels(NamedTuple):
    """What rounding to a ladder needs to know; all broadcast against the value that is coded.

    A level ends half-way to its upper neighbour, (1 + 1/ρ)/2 below it: a constant factor, which is made 1 by a gain.

    Attributes:
        threshold: θ.
        gain: magnitudes times this lie between the level that they are rounded to, as a share of θ, and its upper neighbour.
        floor: the smallest level as a share of θ.
        least: the smallest magnitude that fires.
        steps: for ρ = 2^(1/m), the levels within an octave, 2^(j/m) for 0 < j < m; infinite where a ratio has fewer. None if
            there is another ratio.
        ratio: ρ.
    """

    threshold: Tensor
    gain: Tensor
    floor: Tensor
    least: Tensor
    steps: tuple[Tensor, ...] | None
    ratio: Tensor


@dataclass(frozen=True)
class Alphabet:
    """The ladder of values {θ ρ^-k, k < n}, of both signs if ``signed``, and silence.

    Binary spikes are ``Alphabet(1, signed=False)``, ternary ones ``Alphabet(1)``. Multi-threshold neurons have n > 1; with
    ρ = 2 a receiver shifts and adds, with ρ = 2^(1/m) it does so with one of m stored versions of the weight (DCGS, ICML 2025,
    has ρ = 2).

    A ``centred`` binary alphabet has no silence in the middle: a neuron fires where it lacks something positive, and a constant
    of -θ/2 makes of spike and silence θ/2 and -θ/2. T steps, each with half the threshold of that before, are the T bits of a
    number.
    """

    levels: int
    ratio: float = 2.0
    signed: bool = True
    centred: bool = False

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"an alphabet has at least 1 level, got {self.levels}")
        if not self.ratio > 1:
            raise ValueError(f"the ratio of neighbouring levels must be above 1, got {self.ratio}")
        if self.centred and (self.levels > 1 or self.signed):
            raise ValueError(f"a centred alphabet is binary, got {self.levels} levels, signed {self.signed}")

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

    @property
    def versions(self) -> int | None:
        """m, where ρ is 2^(1/m): stored versions of what spikes meet that a receiver has at most. None for another ratio."""
        m = max(round(1 / math.log2(self.ratio)), 1)
        return m if abs(2 ** (1 / m) - self.ratio) <= CLOSE * self.ratio else None

    def offset(self, threshold: Tensor) -> Tensor | None:
        """What comes on top of a spike, or of silence, in each timestep."""
        return -threshold / 2 if self.centred else None

    def rounding(self, ladder: Ladder, versions: int | None = None) -> Levels:
        """The constants of rounding to a ladder, in its type; they are computed in double precision.

        Args:
            ladder: the levels.
            versions: where all ratios are known to be 2^(1/m), the most that m may be: then they are looked at only where they
                are at hand, which may save steps.
        """
        threshold, ratio = ladder.threshold.double(), ladder.ratio.double()
        floor = ratio ** (1 - self.levels)
        least = threshold * (MIDDLE if self.centred else floor / 2)
        least = torch.maximum(ladder.silence, least.to(ladder.silence))
        m = ratio.log2().reciprocal().round().clamp(min=1)
        steps = None
        if versions is None or is_at_hand(ratio):
            versions = int(m.max()) if bool(((m.reciprocal().exp2() - ratio).abs() <= CLOSE * ratio).all()) else None
        if versions is not None:
            floor = ((1 - self.levels) / m).exp2()
            inner = range(1, versions) if self.levels > 1 else ()
            steps = tuple(torch.where(j < m, (j / m).exp2(), torch.inf).to(ladder.threshold) for j in inner)
        gain = 2 / (1 + 1 / ratio) / threshold
        gain, floor = gain.to(ladder.threshold), floor.to(ladder.threshold)
        return Levels(ladder.threshold, gain, floor, least, steps, ladder.ratio)

    def quantize(self, u: Tensor, levels: Levels) -> Tensor:
        """The nearest level, or 0 below the least; a tie goes to the larger (``>=``, as in the literature); see `spread`.

        Not differentiable: see `vit2snn.spiking.coding.emit`.
        """
        y = self.magnitudes(u)
        z = y * levels.gain
        if levels.steps is None:
            octaves = levels.ratio.log2()
            level = (-octaves * (-z.log2() / octaves).ceil()).exp2()
        else:
            power = level = octave(z)
            for step in levels.steps:
                above = power * step
                level = torch.where(z >= above, above, level)
        level = torch.maximum(level, levels.floor).clamp(max=1) * levels.threshold
        spikes = torch.where(y >= levels.least, level, 0.0)
        return spread(copysign(spikes, u) if self.signed else spikes, u)

    def burst(self, u: Tensor, levels: Levels, count: int) -> list[Tensor]:
        """``count`` spikes, each `quantize` of what the ones before it left; silence too counts as one."""
        spikes = [self.quantize(u, levels)]
        while len(spikes) < count:
            u = u - spikes[-1]
            spikes.append(self.quantize(u, levels))
        return spikes


def is_at_hand(x: Tensor) -> bool:
    """Whether the host can read values without having to wait until a device has computed them."""
    return x.device.type == "cpu"


def spread(spikes: Tensor, u: Tensor) -> Tensor:
    """``spikes`` with NaN where ``u``, of the same shape, is not finite: a neuron must not take such a value for silence."""
    return torch.add(spikes, u, alpha=0)  # a zero of the sign of u, which changes no bit of its spike
