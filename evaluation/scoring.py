"""Accuracy and spikes at every timestep of a network that was trained as a spiking one, and so has no ANN beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..spiking import counting_spikes
from ..spiking.shards import smallest, total
from ..zoo import SpikingTransformer


@dataclass(frozen=True)
class Score:
    """The network read after ``timestep`` timesteps.

    Attributes:
        timestep: 1 for the first.
        top1: accuracy in per cent.
        spikes_per_neuron: spikes that a neuron has sent so far, mean over neurons and images; an integer counts as so many.
    """

    timestep: int
    top1: float
    spikes_per_neuron: float


@dataclass(frozen=True)
class Scores:
    """The accuracy-versus-timestep curve of a zoo model."""

    images: int
    points: tuple[Score, ...]

    def to_json(self) -> dict[str, Any]:
        """The document that ``vit2snn evaluate --json`` prints."""
        return {"images": self.images, "snn": [asdict(point) for point in self.points]}


@torch.no_grad()
def score(
    model: SpikingTransformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    timesteps: int | None = None,
    shared: bool = False,
) -> Scores:
    """Score a zoo model at every timestep, in one pass over the images.

    Args:
        model: in evaluation mode.
        batches: images ``[B, C, H, W]``, or frames ``[T, B, C, H, W]``, and labels ``[B]``.
        timesteps: T; the model's unless given.
        shared: whether all processes of the ``torch.distributed`` group call this, each with its share of the images: then each
            gets the figures over all. Otherwise a process scores what it is given by itself.

    Raises:
        DataError: there are no images, or labels are not classes of the model.
    """
    device = next(model.parameters()).device
    images, right = 0, torch.zeros(0)
    with counting_spikes(model) as count:
        for x, y in batches:
            if int(y.min()) < 0 or int(y.max()) >= model.num_classes:
                raise DataError(f"labels from {int(y.min())} to {int(y.max())} for a model of {model.num_classes} classes")
            hits = (model.readout(x.to(device), timesteps).argmax(-1).cpu() == y).sum(1)
            images, right = images + len(y), hits + (right if len(right) else 0)
    fewest = smallest(torch.tensor(images)) if shared else images
    if not fewest:
        raise DataError("there are no images to score")
    if shared:
        images, right, count = int(total(torch.tensor(images))), total(right), count.over_processes()
    spikes = count.per_neuron()
    points = (Score(t + 1, 100 * float(right[t]) / images, float(spikes[t])) for t in range(len(right)))
    return Scores(images, tuple(points))
