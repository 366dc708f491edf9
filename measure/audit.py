"""The audit: is it really spike-driven? Of every operation, what its operands were seen to be, and whether it only adds."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..spiking import SpikingNetwork, evaluating
from ..spiking.shards import smallest
from .cost import Costs, OperationCost
from .energy import Dense
from .kinds import Kind
from .meter import Meter
from .tally import OperationKind

CAUSES: dict[OperationKind, str] = {
    "function": "nonlinear functions",
    "weighted": "numbers that meet weights",
    "product": "numbers, or calibrated biases, that meet signals",
}
"""Where multiplications come from, by the kind of an operation."""


@dataclass(frozen=True)
class AuditRow:
    """An operation, or the same one in all blocks.

    Attributes:
        module: its name, with ``*`` for the numbers of blocks.
        function: of torch, or the class of a module that is counted as a whole.
        kind: see `vit2snn.measure.Tally`.
        operands: kinds of what it reads.
        copies: stored versions of a weight (or of the other operand) that it needs to do without multiplications.
        accumulates: of an image, in all timesteps.
        multiplies: the same of multiply-accumulates.
    """

    module: str
    function: str
    kind: OperationKind
    operands: tuple[Kind, ...]
    copies: int
    accumulates: float
    multiplies: float

    @property
    def addition_only(self) -> bool:
        """Whether it needs no multiplication."""
        return not self.multiplies


@dataclass(frozen=True)
class Audit:
    """The operations of a run, and how many of them are additions.

    Attributes:
        rows: in order of execution.
        timesteps: T.
        images: on how many the operands were looked at.
    """

    rows: tuple[AuditRow, ...]
    timesteps: int
    images: int

    @classmethod
    def of(cls, costs: Costs, images: int) -> Audit:
        """From operations whose operands were observed on so many images."""
        groups: dict[tuple[str, str, OperationKind, tuple[Kind, ...]], list[OperationCost]] = defaultdict(list)
        for operation in costs.operations:
            kinds = tuple(operand.kind or "silent" for operand in operation.operands)
            groups[_without_numbers(operation.module), operation.function, operation.kind, kinds].append(operation)
        rows = []
        for (module, function, kind, kinds), operations in groups.items():
            name = module if len(operations) > 1 else operations[0].module
            copies = max((operand.copies for operation in operations for operand in operation.operands), default=1)
            counts = [_of_run(operation, costs.synchronous) for operation in operations]
            accumulates, multiplies = (sum(count[index] for count in counts) for index in (0, 1))
            rows.append(AuditRow(name, function, kind, kinds, copies, accumulates, multiplies))
        return cls(tuple(rows), costs.timesteps, images)

    @property
    def share(self) -> float:
        """Additions among all operations, 0..1."""
        added = sum(row.accumulates for row in self.rows)
        return added / max(added + sum(row.multiplies for row in self.rows), 1)

    @property
    def copies(self) -> int:
        """Stored versions of a weight that are needed at most."""
        return max((row.copies for row in self.rows), default=1)

    def sentence(self) -> str:
        """How spike-driven the network is."""
        stored = f", with up to {self.copies} stored versions of a weight" if self.copies > 1 else ""
        if all(row.addition_only for row in self.rows):
            return (
                f"All operations of this network are additions, shifts and comparisons{stored}: it is spike-driven throughout."
            )
        whole = sum(row.accumulates + row.multiplies for row in self.rows)
        causes: dict[str, float] = defaultdict(float)
        for row in self.rows:
            if row.multiplies:
                causes[CAUSES[row.kind]] += row.multiplies
        parts = [
            f"{cause} ({100 * count / whole:.2g} %)" for cause, count in sorted(causes.items(), key=lambda cause: -cause[1])
        ]
        return (
            f"{100 * self.share:.1f} % of the operations of this network are additions{stored}; the rest are "
            f"multiplications of {' and of '.join(parts)}."
        )

    def to_json(self) -> dict[str, Any]:
        """The document that ``vit2snn audit --json`` prints."""
        return {
            "sentence": self.sentence(),
            "additions": self.share,
            "addition_only": all(row.addition_only for row in self.rows),
            "copies": self.copies,
            "timesteps": self.timesteps,
            "images": self.images,
            "operations": [asdict(row) | {"addition_only": row.addition_only} for row in self.rows],
        }


@torch.no_grad()
def audit(network: SpikingNetwork, batches: Iterable[Tensor], timesteps: int | None = None) -> Audit:
    """Look at the operands of all operations while a network runs.

    All processes of a ``torch.distributed`` group call this, each with its share of the images, and get what all of them saw.

    Args:
        network: a converted network, or one of the zoo.
        batches: images ``[B, C, H, W]``, or frames ``[T, B, C, H, W]``; a few are enough.
        timesteps: T; the network's unless given.

    Raises:
        DataError: there are no images (in one of the processes).
    """
    meter = Meter(network.network, observing=True)
    with evaluating(network):
        for images in batches:
            with meter:
                network.readout(meter.show(images), timesteps, chunk=1)
    if not int(smallest(torch.tensor(meter.images))):
        raise DataError("there are no images to look at")
    meter.over_processes()
    return Audit.of(Costs.of(meter, Dense.of(meter.tallies), network.synchronous), meter.images)


def _without_numbers(module: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module)


def _of_run(operation: OperationCost, synchronous: bool) -> tuple[float, float]:
    """Accumulates and multiply-accumulates of all timesteps."""
    if synchronous:
        return operation.accumulates[-1], operation.multiplies[-1]
    return sum(operation.accumulates), sum(operation.multiplies)
