"""Accuracy, agreement, error and spikes at every timestep, in one pass over the images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..convert import SpikingModel
from ..convert.dataflow import dataflow
from ..convert.energy import Cost
from ..errors import DataError
from ..spiking import SpikeCount, counting_spikes
from ..spiking.shards import processes, smallest, total
from .diagnosis import ModuleError, diagnose

DIAGNOSED = 8  # images of the first batch on which the error of every neuron is measured


@dataclass(frozen=True)
class Point:
    """The network read after ``timestep`` timesteps.

    Attributes:
        timestep: 1 for the first.
        top1: accuracy in per cent.
        agreement: share of images with the same top-1 class as the ANN, in per cent.
        relative_error: ‖snn - ann‖ / ‖ann‖ of the logits, over all images.
        spikes_per_neuron: spikes that a neuron has sent so far, mean over neurons and images.
        operations: accumulates that spikes have caused so far for an image, relative to the multiply-accumulates of the ANN's
            synaptic operations. None for a spike-driven network.
        energy: of these and of all that is analog, relative to the ANN's (see `vit2snn.convert.energy`). None as above.
        latency: timesteps from the image to this readout: more than ``timestep`` if layers take their timesteps one after the
            other.
    """

    timestep: int
    top1: float
    agreement: float
    relative_error: float
    spikes_per_neuron: float
    operations: float | None
    energy: float | None
    latency: int


@dataclass(frozen=True)
class Evaluation:
    """The accuracy-versus-timestep curve of a network, beside the ANN on the same images."""

    images: int
    ann_top1: float
    points: tuple[Point, ...]
    modules: list[ModuleError] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The document that ``vit2snn evaluate --json`` prints."""
        return {
            "images": self.images,
            "ann": {"top1": self.ann_top1},
            "snn": [asdict(point) for point in self.points],
            "modules": [asdict(module) for module in self.modules],
        }


class _Logits:
    """Running comparison of the readout with the ANN's logits and with the labels."""

    def __init__(self, timesteps: int) -> None:
        self.images, self.ann_right = 0, 0
        self.right, self.agreed = torch.zeros(timesteps), torch.zeros(timesteps)
        self.difference, self.size = torch.zeros(timesteps, dtype=torch.float64), 0.0

    def add(self, readout: Tensor, ann: Tensor, labels: Tensor) -> None:
        """A batch: ``[T, B, classes]``, ``[B, classes]`` and ``[B]``."""
        guess, prediction = readout.argmax(-1), ann.argmax(-1)
        self.images += len(labels)
        self.ann_right += int((prediction == labels).sum())
        self.right += (guess == labels).sum(1).cpu()
        self.agreed += (guess == prediction).sum(1).cpu()
        self.difference += (readout - ann).double().square().sum((1, 2)).cpu()
        self.size += float(ann.double().square().sum())

    def join(self) -> None:
        """Take in what the other processes of the group compared."""
        self.images, self.ann_right = total(torch.tensor([self.images, self.ann_right])).tolist()
        self.right, self.agreed, self.difference = map(total, (self.right, self.agreed, self.difference))
        self.size = float(total(torch.tensor(self.size, dtype=torch.float64)))

    def point(self, t: int, spikes: Tensor, cost: Cost | None, depth: int) -> Point:
        """The figures after ``t`` timesteps."""
        operations, energy = cost.at(t, self.images) if cost else (None, None)
        return Point(
            timestep=t,
            top1=100 * float(self.right[t - 1]) / self.images,
            agreement=100 * float(self.agreed[t - 1]) / self.images,
            relative_error=float((self.difference[t - 1] / max(self.size, torch.finfo(torch.float64).tiny)).sqrt()),
            spikes_per_neuron=float(spikes[t - 1]),
            operations=operations,
            energy=energy,
            latency=depth * t,
        )


@torch.no_grad()
def evaluate(
    snn: SpikingModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    timesteps: int | Sequence[int] | None = None,
) -> Evaluation:
    """Score a converted network against labels and against its ANN.

    All processes of a ``torch.distributed`` group call this, each with its share of the images, and get the figures over all.

    Args:
        snn: the converted network.
        batches: images ``[B, C, H, W]`` and labels ``[B]``, such as a DataLoader.
        timesteps: T, to report every timestep up to it, or the timesteps to report; the recipe's T unless given.

    Raises:
        DataError: there are no images (in one of the processes), or labels are not classes of the model.
        ValueError: a timestep is below 1.
    """
    timesteps = snn.recipe.timesteps if timesteps is None else timesteps
    reported = range(1, timesteps + 1) if isinstance(timesteps, int) else sorted(set(timesteps))
    if not reported or reported[0] < 1:
        raise ValueError(f"timesteps must be at least 1, got {timesteps}")
    last = reported[-1]
    device = next(snn.network.parameters()).device
    flow = None if snn.recipe.spike_driven else dataflow(snn.network, snn.input_size)
    spikes, logits = SpikeCount(flow.fan_out if flow else {}, snn.recipe.synchronous), _Logits(last)
    remaining = iter(batches)
    first = next(remaining, None)
    if not int(smallest(torch.tensor(0 if first is None else len(first[0])))):
        raise DataError("there are no images to score")
    modules: list[ModuleError] = []
    for x, y in chain([first] if first else [], remaining):
        x, y = x.to(device), y.to(device)
        ann = snn.ann(x)
        if int(y.min()) < 0 or int(y.max()) >= ann.shape[1]:
            raise DataError(f"labels from {int(y.min())} to {int(y.max())} for a model of {ann.shape[1]} classes")
        modules = modules or diagnose(snn, x[: -(-DIAGNOSED // processes())], last)
        with counting_spikes(snn.network, spikes):
            logits.add(snn(x, last, chunk=1), ann, y)
    logits.join()
    spikes = spikes.over_processes()
    cost = Cost(flow, spikes.caused(), snn.recipe.synchronous) if flow else None
    depth = flow.depth if flow and snn.recipe.synchronous else 1
    points = tuple(logits.point(t, spikes.per_neuron(), cost, depth) for t in reported)
    return Evaluation(logits.images, 100 * logits.ann_right / logits.images, points, modules)
