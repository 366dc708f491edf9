"""What operations cost: energy models as data, and a network's energy by them.

All figures are of computing alone, in arithmetic of 32-bit floating-point numbers at 45 nm unless another model is chosen;
memory traffic is estimated apart, and is an estimate. No figure is a measurement of hardware.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .charges import FUNCTION_MACS
from .tally import Tally

HOROWITZ = "Horowitz, Computing's energy problem, ISSCC 2014, figure 1.1.9"


@dataclass(frozen=True)
class EnergyModel:
    """Energy of an operation, in pJ.

    Attributes:
        name: what it is called.
        mac: of a multiply-accumulate.
        ac: of an accumulate.
        source: where the figures are from.
    """

    name: str
    mac: float
    ac: float
    source: str


FLOAT32 = EnergyModel("45 nm float32", 4.6, 0.9, HOROWITZ)
MODELS: tuple[EnergyModel, ...] = (
    FLOAT32,
    EnergyModel("45 nm float16", 1.5, 0.4, HOROWITZ),
    EnergyModel("45 nm int32", 3.2, 0.1, HOROWITZ),
    EnergyModel("45 nm int8", 0.23, 0.03, HOROWITZ),
)
"""A multiplication and an addition, and an addition; the first is the field's."""

WORD = 5.0  # pJ
"""Energy of moving 32 bits between an 8 KB memory and the arithmetic: half of the 10 pJ of a 64-bit access (`HOROWITZ`)."""


@dataclass(frozen=True)
class Dense:
    """What an ANN does for one image.

    Attributes:
        macs: multiply-accumulates of its synaptic operations.
        functions: those charged for its nonlinear functions.
        comparisons: accumulates charged for functions that only compare.
        words: words that it moves if each weight is read, and each operand read and each output written, once.
    """

    macs: int
    functions: int
    comparisons: int
    words: int

    @classmethod
    def of(cls, tallies: Sequence[Tally]) -> Dense:
        """That of metered operations, were all operands numbers."""
        return cls(
            macs=sum(tally.macs for tally in tallies),
            functions=FUNCTION_MACS * sum(tally.outputs for tally in tallies if tally.kind == "function"),
            comparisons=sum(tally.operands[0].elements for tally in tallies if tally.kind == "comparison"),
            words=sum(
                tally.weights + tally.outputs + sum(operand.elements for operand in tally.operands)
                for tally in tallies
                if tally.kind in ("weighted", "product", "function", "comparison")
            ),
        )

    def energy(self, model: EnergyModel = FLOAT32) -> float:
        """In pJ for an image."""
        return model.mac * (self.macs + self.functions) + model.ac * self.comparisons


def energy(operations: Tensor, model: EnergyModel = FLOAT32) -> Tensor:
    """In pJ, of accumulates and multiply-accumulates ``[..., 2]``, ``[...]``."""
    return operations[..., 0] * model.ac + operations[..., 1] * model.mac


def conventional(
    tallies: Sequence[Tally],
    images: int,
    timesteps: int,
    passes: int | None = None,
    model: EnergyModel = FLOAT32,
    synchronous: bool = False,
) -> float:
    """By the convention of the papers of spiking transformers, in pJ for an image: E_MAC · FL₁ + E_AC · Σ rate · T · FL.

    FL are an operation's multiply-accumulates, FL₁ those of all timesteps of operations on numbers (the layer that sees the
    image), and ``rate`` is the mean of what comes in: of a product, of the operand that fires least. Functions cost nothing.
    (Spikformer, ICLR 2023; for products, and for the first layer in every timestep, the code of Spikingformer, arXiv
    2304.11954.) Numbers are multiplied in so many ``passes``, as many as timesteps unless given. In a ``synchronous`` network
    the last timestep holds a whole run.
    """
    total = 0.0
    for tally in tallies:
        if tally.macs and float(tally.multiplies.sum()) >= tally.macs * images * len(tally.multiplies):
            total += model.mac * tally.macs * (timesteps if passes is None else passes)
        elif tally.macs:
            sent = (stream.spikes[-1:] if synchronous else stream.spikes[:timesteps] for stream in tally.operands)
            rates = (float(s.sum()) / (images * stream.elements) for s, stream in zip(sent, tally.operands, strict=True))
            total += model.ac * tally.macs * min(rates)
    return total


def least_words(tallies: Sequence[Tally], neurons: int, spikes: float, timesteps: int) -> float:
    """An estimate of the words that a spiking network moves for an image, at the least.

    That is, if in every timestep each weight is read once (each stored version of it, where spikes need several), each output
    accumulated in place and written once, each neuron's state read and written once, and each spike is sent once, as a word
    (its address and value).
    """
    each = sum(_versions(tally) * tally.weights + tally.outputs for tally in tallies) + 2 * neurons
    return timesteps * each + spikes


def _versions(tally: Tally) -> int:
    """Stored versions of each weight."""
    return max((stream.copies for stream in tally.operands), default=1)


def most_words(accumulates: float, multiplies: float) -> float:
    """An estimate of the words moved for so many operations, at the most: nothing is kept near the arithmetic.

    An accumulate reads what it adds, and reads and writes a sum; a multiply-accumulate reads two factors, too.
    """
    return 3 * accumulates + 4 * multiplies
