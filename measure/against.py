"""A spiking network beside quantised ANNs: accuracy and energy, on the same images and by the same rules, whoever wins.

Energy is of arithmetic on 8-bit numbers at 45 nm (`vit2snn.measure.energy.MODELS`): an accumulate, in the SNN, is one 8-bit
addition; a multiply-accumulate of k bits is an addition, and a multiplication, whose energy goes with the square of the bits.
Memory traffic is the least there can be (`least_words` and `Dense.words`), in words of 8 bits in the SNN and of k bits in the
ANN; each timestep of the SNN reads all weights again, in all versions that its spikes need. The SNN's accuracy is that of its
weights as they are: of 8 bits, if it was converted so (recipe field ``weight_bits``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from .cost import PICO, Costs
from .energy import MODELS, WORD, EnergyModel

INT8 = next(model for model in MODELS if model.name == "45 nm int8")
BITS = 8
"""Of the SNN's weights and state."""
MACHINES = ("computing alone", "computing and memory")


@dataclass(frozen=True)
class Rival:
    """A quantised ANN on the scored images.

    Attributes:
        bits: of weights and activations.
        top1: as in `Point`.
        agreement: with the ANN, as in `Point`.
        relative_error: of the logits.
        energy_uj: for an image, by each of `MACHINES`.
    """

    bits: int
    top1: float | None
    agreement: float | None
    relative_error: float
    energy_uj: tuple[float, ...]


class Contestant(Protocol):
    """What is compared of a `Point`."""

    @property
    def timestep(self) -> int: ...  # noqa: D102
    @property
    def top1(self) -> float | None: ...  # noqa: D102
    @property
    def agreement(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class Contest:
    """Quantised ANNs and the spiking network.

    Attributes:
        rivals: the ANNs.
        energy_uj: of the SNN for an image, by each of `MACHINES`, up to each timestep that is reported.
        verdicts: where the SNN wins: a sentence for each rival and machine.
    """

    rivals: tuple[Rival, ...]
    energy_uj: tuple[tuple[float, ...], ...]
    verdicts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A dictionary, with the names of the machines."""
        return {"machines": list(MACHINES), **asdict(self)}


def of_bits(bits: int) -> EnergyModel:
    """Arithmetic on numbers of so many bits."""
    multiply = INT8.mac - INT8.ac
    return EnergyModel(f"45 nm int{bits}", multiply * (bits / BITS) ** 2 + INT8.ac, INT8.ac, INT8.source)


def energies(costs: Costs, bits: int) -> tuple[float, ...]:
    """Of the ANN for an image in µJ, by each machine."""
    compute = costs.ann.energy(of_bits(bits))
    return PICO * compute, PICO * (compute + WORD * bits / 32 * costs.ann.words)


def spiking_energies(costs: Costs, timesteps: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Of the spiking network, up to each of these timesteps."""
    compute = costs.energy(INT8).tolist()
    words = costs.words_so_far().tolist()
    return (
        tuple(PICO * compute[t - 1] for t in timesteps),
        tuple(PICO * (compute[t - 1] + WORD * BITS / 32 * words[t - 1]) for t in timesteps),
    )


def contest(rivals: Sequence[Rival], points: Sequence[Contestant], costs: Costs, images: int) -> Contest:
    """Set quantised ANNs beside a spiking network.

    Args:
        rivals: the ANNs.
        points: the curve of the network.
        costs: of the network.
        images: that were scored.
    """
    spent = spiking_energies(costs, [point.timestep for point in points])
    verdicts = [
        _verdict(rival, machine, points, spent[machine], images) for rival in rivals for machine in range(len(MACHINES))
    ]
    return Contest(tuple(rivals), spent, tuple(verdicts))


def _verdict(rival: Rival, machine: int, points: Sequence[Contestant], spent: Sequence[float], images: int) -> str:
    """Whether the network is as good as a rival for less energy, and at which T."""
    good = [(e, point.timestep) for point, e in zip(points, spent, strict=True) if is_as_good(point, rival, images)]
    name, where = f"the ANN of {rival.bits} bits", f"by {MACHINES[machine]}"
    if not good:
        return f"{where}, {name} wins: the SNN is less accurate at every T"
    least, t = min(good)
    share = f"{least / rival.energy_uj[machine]:.2g} times its energy at T = {t}"
    wins = least < rival.energy_uj[machine]
    return f"{where}, the SNN beats {name}: {share}" if wins else f"{where}, {name} wins: the SNN takes {share}"


def is_as_good(point: Contestant, rival: Rival, images: int) -> bool:
    """Whether the network is as accurate: ``top1`` is no lower by more than one standard error; without labels, the agreement.

    Two networks differ in accuracy by images of which they name different classes, which are at most those in which either
    differs from the ANN: of a share d of n images, the difference has a standard error of at most √(d / n).
    """
    assert point.agreement is not None and rival.agreement is not None
    if point.top1 is None or rival.top1 is None:
        return point.agreement >= rival.agreement
    differ = (200 - point.agreement - rival.agreement) / 100
    return point.top1 >= rival.top1 - 100 * math.sqrt(differ / images)
