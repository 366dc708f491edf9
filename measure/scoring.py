"""Accuracy, spikes and energy at every timestep of a network that was trained as a spiking one: it has no ANN beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..data import digest
from ..errors import DataError
from ..metering import Dense, Meter
from ..spiking.shards import collected, processes, smallest, total
from ..zoo import SpikingTransformer, channels_last
from .audit import Audit
from .batching import Parts, apart, check_finite, check_labels, set_digest
from .cost import Costs

OBSERVED = 8  # images of the first batch of which all operands are looked at


@dataclass(frozen=True)
class Score:
    """The network read after ``timestep`` timesteps.

    Attributes:
        timestep: 1 for the first.
        top1: accuracy in per cent.
        spikes_per_neuron: spikes that a neuron has sent so far, mean over neurons and images; an integer counts as so many.
        operations: accumulates and multiply-accumulates so far for an image, relative to the multiply-accumulates of the same
            layers in one pass on numbers.
        energy: of these, relative to that pass (see `vit2snn.measure`).
    """

    timestep: int
    top1: float
    spikes_per_neuron: float
    operations: float
    energy: float


@dataclass(frozen=True)
class Scores:
    """The accuracy-versus-timestep curve of a zoo model.

    Attributes:
        images: how many were scored.
        digest: of the set of scored images: the same for the same images, in whatever order.
        points: the curve.
        costs: every operation.
        audit: how spike-driven they are, as seen on the first images.
    """

    images: int
    digest: str
    points: tuple[Score, ...]
    costs: Costs
    audit: Audit

    def to_json(self) -> dict[str, Any]:
        """The document that ``vit2snn evaluate --json`` prints."""
        return {
            "images": self.images,
            "digest": self.digest,
            "snn": [asdict(point) for point in self.points],
            "audit": self.audit.to_json(),
            "costs": self.costs.to_json(),
        }


@torch.inference_mode()
def score(
    model: SpikingTransformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    timesteps: int | None = None,
    shared: bool = False,
) -> Scores:
    """Score a zoo model at every timestep, and count what it does, in one pass over the images.

    Args:
        model: in evaluation mode.
        batches: images ``[B, C, H, W]``, or frames ``[T, B, C, H, W]``, and labels ``[B]``.
        timesteps: T; the model's unless given.
        shared: whether all processes of the ``torch.distributed`` group call this, each with its share of the images: then each
            gets the figures over all. Otherwise a process scores what it is given by itself.

    Raises:
        DataError: there are no images, labels are not classes of the model, or logits are not finite.
    """
    device = next(model.parameters()).device
    images, right = 0, torch.zeros(0)
    digests: list[str] = []
    meter, remaining = Meter(model), iter(batches)
    first = next(remaining, None)
    parts = Parts()

    def run(x: Tensor, y: Tensor) -> None:
        nonlocal images, right
        meter.observing = not images
        with meter.undone_on_error(), meter:
            readout = model.readout(meter.show(x.to(device)), timesteps)
        check_finite(readout)
        hits = (readout.argmax(-1).cpu() == y).sum(1)
        images, right = images + len(y), hits + (right if len(right) else 0)

    with channels_last(model):
        for x, y in chain(apart(first, OBSERVED) if first else [], remaining):
            check_labels(y, model.num_classes)
            digests += map(digest, x.transpose(0, 1) if x.ndim == 5 else x)
            parts.run(run, x, y)
    fewest = smallest(torch.tensor(images)) if shared else images
    if not fewest:
        raise DataError("there are no images to score")
    if shared:
        images, right, meter = int(total(torch.tensor(images))), total(right), meter.over_processes()
    costs = Costs.of(meter, Dense.of(meter.tallies))
    operations, energy, spikes = costs.so_far().sum(1), costs.energy(), costs.spikes_per_neuron()
    points = (
        Score(
            timestep=t + 1,
            top1=100 * float(right[t]) / images,
            spikes_per_neuron=float(spikes[t]),
            operations=float(operations[t]) / costs.ann.macs,
            energy=float(energy[t]) / costs.ann.energy(),
        )
        for t in range(len(right))
    )
    audit = Audit.of(costs, min(OBSERVED * (processes() if shared else 1), images))
    return Scores(images, set_digest(collected(digests) if shared else digests), tuple(points), costs, audit)
