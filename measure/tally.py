"""What was counted: of each operation, and of the spikes at one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .kinds import KINDS, Kind, joined, kind_in

SAMPLED = 2**14

OperationKind = Literal["weighted", "product", "reduction", "comparison", "rotation", "shift", "function"]


def padded(counts: Tensor, length: int, device: torch.device) -> Tensor:
    """``counts`` ``[T]`` with zeros up to ``length``, on the device that counts are made on."""
    more = length - len(counts)
    return torch.cat([counts.to(device), counts.new_zeros(more, device=device)]) if more > 0 else counts


@dataclass
class Stream:
    """Spikes at one place, summed over images.

    Counts stay on the device that they are made on, so that the host need not wait until a figure is read.

    Attributes:
        name: the neuron that sends them, if it is a coded one.
        copies: stored versions of what they meet that a receiver needs to do without multiplications.
        elements: values at this place for one image.
        spikes: of each timestep, ``[T]``.
        kinds: which kinds they were seen to be, ``[KINDS]``.
    """

    name: str = ""
    copies: int = 1
    elements: int = 0
    spikes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    kinds: Tensor = field(default_factory=lambda: torch.zeros(len(KINDS), dtype=torch.bool))

    @property
    def kind(self) -> Kind | None:
        """What they were seen to be; None if nobody looked."""
        return joined(self.kinds)

    def add(self, start: int, spikes: Tensor) -> None:
        """Note ``spikes`` ``[T, B]`` of the timesteps from ``start`` on."""
        self.spikes = padded(self.spikes, start + len(spikes), spikes.device)
        self.spikes[start : start + len(spikes)] += spikes.sum(1, dtype=torch.float64)

    def saw(self, values: Tensor) -> None:
        """Note what kind ``values`` are, by at most `SAMPLED` of them, spread evenly."""
        step = values.numel() // SAMPLED | 1  # odd, so that it does not always hit the same channels
        self.kinds = self.kinds.to(values.device) | kind_in(values.flatten()[::step])


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
        of_spikes: of a reduction, a scalar: whether it has summed spikes, at any time. Sums of numbers are no operations.
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
    of_spikes: Tensor | None = None
