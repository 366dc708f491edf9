"""What was counted: of each operation, and of the spikes at one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .kinds import Kind, join, observe

SAMPLED = 2**14

OperationKind = Literal["weighted", "product", "reduction", "comparison", "rotation", "shift", "function"]


def padded(counts: Tensor, length: int) -> Tensor:
    """``counts`` ``[T]`` with zeros up to ``length``."""
    return counts if len(counts) >= length else torch.cat([counts, counts.new_zeros(length - len(counts))])


@dataclass
class Stream:
    """Spikes at one place, summed over images.

    Attributes:
        name: the neuron that sends them, if it is a coded one.
        kind: what they were seen to be; None if nobody looked.
        copies: stored versions of what they meet that a receiver needs to do without multiplications.
        elements: values at this place for one image.
        spikes: of each timestep, ``[T]``.
    """

    name: str = ""
    kind: Kind | None = None
    copies: int = 1
    elements: int = 0
    spikes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def add(self, start: int, spikes: Tensor) -> None:
        """Note ``spikes`` ``[T, B]`` of the timesteps from ``start`` on."""
        self.spikes = padded(self.spikes, start + len(spikes))
        self.spikes[start : start + len(spikes)] += spikes.sum(1, dtype=torch.float64).cpu()

    def saw(self, values: Tensor) -> None:
        """Note what kind ``values`` are, by at most `SAMPLED` of them, spread evenly."""
        step = values.numel() // SAMPLED | 1  # odd, so that it does not always hit the same channels
        kind = observe(values.flatten()[::step])
        self.kind = kind if self.kind is None else join(self.kind, kind)


@dataclass
class Tally:
    """One operation of a network, counted over a run.

    Attributes:
        module: whose own ``forward`` makes it.
        function: of torch, or the class of a module that is counted as a whole.
        kind: ``weighted`` (a signal meets weights), ``product`` (two signals meet), ``reduction`` (a sum of spikes),
            ``comparison``, ``rotation`` (Hadamard), ``shift`` (a nonlinear function of shifts and additions), or ``function``
            (any other).
        macs: multiply-accumulates for one image and timestep of a weighted operation or product, were its operands numbers.
        operands: those that depend on the image.
        weights: values of the weights that they meet.
        outputs: values that it makes for one image and timestep.
        accumulates: of each timestep, ``[T]``, summed over images.
        multiplies: the same of multiply-accumulates.
    """

    module: str
    function: str
    kind: OperationKind
    macs: int = 0
    operands: list[Stream] = field(default_factory=list)
    weights: int = 0
    outputs: int = 0
    accumulates: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    multiplies: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
