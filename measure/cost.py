"""What a run cost, operation by operation and timestep by timestep, as data: from the meter, for an image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .energy import FLOAT32, MODELS, WORD, Dense, EnergyModel, conventional, energy, least_words, most_words
from .kinds import Kind
from .meter import Meter
from .tally import OperationKind, Stream, Tally

PICO = 1e-6  # from pJ to µJ


@dataclass(frozen=True)
class Operand:
    """What an operation reads that depends on the image.

    Attributes:
        neuron: the coded neuron that sends it; empty for what comes from elsewhere.
        kind: what it was observed to be; None if nobody looked.
        copies: stored versions of what its spikes meet, so that only shifts and additions are needed.
        elements: values.
        rate: spikes for a value in each timestep (of numbers that are no spikes: the share that is not 0); mean over images.
    """

    neuron: str
    kind: Kind | None
    copies: int
    elements: int
    rate: tuple[float, ...]


@dataclass(frozen=True)
class OperationCost:
    """One operation (see `vit2snn.measure.Tally`).

    Attributes:
        module: whose ``forward`` makes it.
        function: of torch, or the class of the module.
        kind: see `vit2snn.measure.Tally`.
        macs: multiply-accumulates of one timestep, were its operands numbers.
        operands: those that depend on the image.
        accumulates: in each timestep, the mean over images; of a layer-synchronous network, of runs of 1, 2, ... timesteps.
        multiplies: the same of multiply-accumulates.
    """

    module: str
    function: str
    kind: OperationKind
    macs: int
    operands: tuple[Operand, ...]
    accumulates: tuple[float, ...]
    multiplies: tuple[float, ...]


@dataclass(frozen=True)
class Costs:
    """The operations of a network, and their energy beside the ANN's; all for one image.

    Attributes:
        operations: in order of execution.
        neurons: what each neuron sent.
        ann: what the ANN does; of a zoo model, its own layers in one pass on numbers.
        synchronous: whether figures of a timestep are those of a whole run of so many.
        passes: how often each layer computes in a run of all timesteps.
        words: least words moved in a run of all timesteps (an estimate, see `vit2snn.measure.least_words`).
        convention: energy of all timesteps in pJ by the convention of the literature (see `vit2snn.measure.conventional`).
    """

    operations: tuple[OperationCost, ...]
    neurons: tuple[Operand, ...]
    ann: Dense
    synchronous: bool
    passes: int
    words: float
    convention: float

    @classmethod
    def of(cls, meter: Meter, ann: Dense, synchronous: bool = False) -> Costs:
        """The means over the images of a meter."""
        tallies, streams = meter.tallies, meter.streams
        timesteps = max((len(tally.accumulates) for tally in tallies), default=0)
        operations = [_operation(tally, meter.images) for tally in tallies]
        neurons = [_operand(stream, meter.images, name) for name, stream in streams.items()]
        sent = sum(float(s.spikes[-1] if synchronous else s.spikes.sum()) for s in streams.values()) / meter.images
        passes = 1 if synchronous and not meter.lags else timesteps
        return cls(
            operations=tuple(operations),
            neurons=tuple(neurons),
            ann=ann,
            synchronous=synchronous,
            passes=passes,
            words=least_words(tallies, sum(s.elements for s in streams.values()), sent, passes),
            convention=conventional(tallies, meter.images, timesteps, passes, synchronous=synchronous),
        )

    @property
    def timesteps(self) -> int:
        """T."""
        return max((len(operation.accumulates) for operation in self.operations), default=0)

    def so_far(self) -> Tensor:
        """Accumulates and multiply-accumulates from the image to the readout after each timestep, ``[T, 2]``."""
        counts = torch.zeros(self.timesteps, 2, dtype=torch.float64)
        for operation in self.operations:
            counts += torch.tensor([operation.accumulates, operation.multiplies], dtype=torch.float64).T
        return counts if self.synchronous else counts.cumsum(0)

    def words_so_far(self) -> Tensor:
        """Least words moved from the image to the readout after each timestep, ``[T]``; see `words`."""
        sent = sum(torch.tensor(neuron.rate, dtype=torch.float64) * neuron.elements for neuron in self.neurons)
        sent = torch.as_tensor(sent) if self.synchronous else torch.as_tensor(sent).cumsum(0)
        each = (self.words - sent[-1]) / self.passes
        return each * (1 if self.passes == 1 else torch.arange(1, self.passes + 1)) + sent

    def energy(self, model: EnergyModel = FLOAT32) -> Tensor:
        """From the image to the readout after each timestep in pJ, ``[T]``."""
        return energy(self.so_far(), model)

    def spikes_per_neuron(self) -> Tensor:
        """Spikes that a neuron has sent up to each timestep, the mean over all neurons, ``[T]``."""
        elements = sum(neuron.elements for neuron in self.neurons)
        rates = [torch.tensor(n.rate, dtype=torch.float64) * (n.elements / max(elements, 1)) for n in self.neurons]
        mean = torch.stack(rates).sum(0) if rates else torch.zeros(self.timesteps, dtype=torch.float64)
        return mean if self.synchronous else mean.cumsum(0)

    def to_json(self) -> dict[str, Any]:
        """Everything, and the energies in µJ by each model."""
        accumulates, multiplies = self.so_far()[-1].tolist()
        return {
            "operations": [asdict(operation) for operation in self.operations],
            "neurons": [asdict(neuron) for neuron in self.neurons],
            "ann": asdict(self.ann),
            "energy": [
                {
                    **asdict(model),
                    "snn_uj": [PICO * value for value in self.energy(model).tolist()],
                    "ann_uj": PICO * self.ann.energy(model),
                }
                for model in MODELS
            ],
            "convention_uj": PICO * self.convention,
            "memory_estimate_uj": {
                "snn": [PICO * WORD * self.words, PICO * WORD * most_words(accumulates, multiplies)],
                "ann": [PICO * WORD * self.ann.words, PICO * WORD * most_words(0, self.ann.macs + self.ann.functions)],
            },
        }


def _mean(counts: Tensor, images: int) -> tuple[float, ...]:
    return tuple((counts / images).tolist())


def _operand(stream: Stream, images: int, name: str = "") -> Operand:
    rate = _mean(stream.spikes / max(stream.elements, 1), images)
    return Operand(stream.name or name, stream.kind, stream.copies, stream.elements, rate)


def _operation(tally: Tally, images: int) -> OperationCost:
    operands = [_operand(stream, images) for stream in tally.operands]
    counts = _mean(tally.accumulates, images), _mean(tally.multiplies, images)
    return OperationCost(tally.module, tally.function, tally.kind, tally.macs, tuple(operands), *counts)
