"""Accuracy, agreement, error, spikes and energy at every timestep, and with early exits, in one pass over the images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..convert import SpikingModel
from ..convert.energy import dense
from ..convert.exit import stops
from ..data import digest
from ..errors import DataError
from ..metering import Meter, energy
from ..spiking.shards import collected, processes, smallest, total
from ..tracing import depth
from .advice import Advice, advise
from .audit import Audit
from .batching import Parts, apart, check_finite, check_labels, set_digest
from .cost import Costs
from .diagnosis import ModuleError, diagnose

DIAGNOSED = 8  # images on which the error of every neuron is measured, and all operands are looked at


@dataclass(frozen=True)
class Point:
    """The network read after ``timestep`` timesteps.

    Attributes:
        timestep: 1 for the first.
        top1: accuracy in per cent.
        agreement: share of images with the same top-1 class as the ANN, in per cent.
        relative_error: ‖snn - ann‖ / ‖ann‖ of the logits, over all images.
        spikes_per_neuron: spikes that a neuron has sent so far, mean over neurons and images.
        operations: accumulates and multiply-accumulates so far for an image, relative to the multiply-accumulates of the ANN's
            synaptic operations.
        energy: of these, relative to the ANN's (see `vit2snn.measure`).
        latency: timesteps from the image to this readout: more than ``timestep`` if layers take their timesteps one after the
            other.
    """

    timestep: int
    top1: float
    agreement: float
    relative_error: float
    spikes_per_neuron: float
    operations: float
    energy: float
    latency: int


@dataclass(frozen=True)
class EarlyExit:
    """The network as an anytime network: each image takes timesteps until the readout is sure enough.

    Attributes:
        confidence: share of the calibration images that were to keep their class.
        limits: how sure the readout has to be after each timestep; null where no image may stop.
        top1: accuracy in per cent.
        agreement: with the ANN, in per cent.
        timesteps: mean over the images.
        energy: mean over the images, relative to the ANN's.
        stopped: share of the images that stop after each timestep, in per cent.
    """

    confidence: float
    limits: tuple[float | None, ...]
    top1: float
    agreement: float
    timesteps: float
    energy: float
    stopped: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """The accuracy-versus-timestep curve of a network, beside the ANN on the same images.

    Attributes:
        images: how many were scored.
        digest: of the set of scored images: the same for the same images, in whatever order.
        calibration: how many images the network was calibrated on, and how many of them were scored.
        ann_top1: accuracy of the ANN in per cent.
        points: the curve.
        modules: which neuron or block errs (see `diagnose`), worst first.
        costs: every operation.
        audit: how spike-driven they are, as seen on the first images.
        exit: with early exits, if that was asked for.
        advice: what to do about it, the gravest first.
    """

    images: int
    digest: str
    calibration: dict[str, int]
    ann_top1: float
    points: tuple[Point, ...]
    modules: list[ModuleError]
    costs: Costs
    audit: Audit
    exit: EarlyExit | None = None
    advice: tuple[Advice, ...] = ()

    def recommended(self, max_drop: float | None = None, max_energy: float | None = None) -> Point | None:
        """The point to take within a budget; None if there is none.

        Args:
            max_drop: points of top-1 that may be lost against the ANN: then the earliest point is taken.
            max_energy: relative to the ANN's: without ``max_drop``, the most accurate point is taken.
        """
        within = [p for p in self.points if max_energy is None or p.energy <= max_energy]
        if max_drop is None:
            return max(within, key=lambda p: (p.top1, -p.timestep), default=None)
        return next((p for p in within if self.ann_top1 - p.top1 <= max_drop), None)

    def to_json(self) -> dict[str, Any]:
        """The document that ``vit2snn evaluate --json`` prints."""
        return {
            "images": self.images,
            "digest": self.digest,
            "calibration": self.calibration,
            "ann": {"top1": self.ann_top1},
            "snn": [asdict(point) for point in self.points],
            "exit": asdict(self.exit) if self.exit else None,
            "advice": [asdict(advice) for advice in self.advice],
            "modules": [asdict(module) for module in self.modules],
            "audit": self.audit.to_json(),
            "costs": self.costs.to_json(),
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

    def points(self, timesteps: Iterable[int], costs: Costs, latency: int) -> tuple[Point, ...]:
        """The figures after so many timesteps, if ``latency`` timesteps are between the image and a readout."""
        spikes, operations = costs.spikes_per_neuron().tolist(), costs.so_far().sum(1).tolist()
        energies, ann_energy = costs.energy().tolist(), costs.ann.energy()
        errors = (self.difference / max(self.size, torch.finfo(torch.float64).tiny)).sqrt().tolist()
        return tuple(
            Point(
                timestep=t,
                top1=100 * float(self.right[t - 1]) / self.images,
                agreement=100 * float(self.agreed[t - 1]) / self.images,
                relative_error=errors[t - 1],
                spikes_per_neuron=spikes[t - 1],
                operations=operations[t - 1] / costs.ann.macs,
                energy=energies[t - 1] / ann_energy,
                latency=latency * t,
            )
            for t in timesteps
        )


class _Exits:
    """Running sums over the images of what they stop with."""

    def __init__(self, limits: Tensor) -> None:
        self.limits = limits
        self.right, self.agreed, self.energy = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        self.stopped = torch.zeros(len(limits))

    def add(self, readout: Tensor, ann: Tensor, labels: Tensor, spent: Tensor) -> None:
        """A batch: ``[T, B, classes]``, ``[B, classes]``, ``[B]``, and the energy in each timestep ``[T, B]``."""
        readout = readout[: len(self.limits)]
        at = stops(readout, self.limits)
        guess = readout.argmax(-1).gather(0, at[None])[0]
        self.right += (guess == labels).sum().cpu()
        self.agreed += (guess == ann.argmax(-1)).sum().cpu()
        self.energy += spent.cumsum(0).gather(0, at.cpu()[None]).sum()
        self.stopped += torch.bincount(at.cpu(), minlength=len(self.limits))

    def finished(self, confidence: float, images: int, ann_energy: float) -> EarlyExit:
        """The means over all processes' images."""
        right, agreed, spent, stopped = map(total, (self.right, self.agreed, self.energy, self.stopped))
        timesteps = float((stopped * torch.arange(1, len(stopped) + 1)).sum()) / images
        return EarlyExit(
            confidence=confidence,
            limits=tuple(None if limit == torch.inf else limit for limit in self.limits.tolist()),
            top1=100 * float(right) / images,
            agreement=100 * float(agreed) / images,
            timesteps=timesteps,
            energy=float(spent) / images / ann_energy,
            stopped=tuple((100 * stopped / images).tolist()),
        )


@torch.inference_mode()
def evaluate(
    snn: SpikingModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    timesteps: int | Sequence[int] | None = None,
    exit_confidence: float | None = None,
    amp_dtype: torch.dtype | None = None,
) -> Evaluation:
    """Score a converted network against labels and against its ANN, and count what it does.

    All processes of a ``torch.distributed`` group call this, each with its share of the images, and get the figures over all.

    Args:
        snn: the converted network.
        batches: images ``[B, C, H, W]`` and labels ``[B]``, such as a DataLoader.
        timesteps: T, to report every timestep up to it, or the timesteps to report; the recipe's T unless given.
        exit_confidence: also score the network with early exits (see `SpikingModel.anytime`).
        amp_dtype: bfloat16 or float16, in which the spiking network then computes what ``torch.autocast`` lets it: the analog
            parts between its neurons, whose state stays in float32. The ANN stays in float32, to compare with.

    Batches are cut into parts where memory runs out.

    Raises:
        DataError: there are no images (in one of the processes), labels are not classes of the model, or logits are not finite.
        ModelError: early exits are asked for, and the network has no calibration of them.
        ValueError: a timestep is below 1, or the confidence not between 0 and 1.
    """
    timesteps = snn.recipe.timesteps if timesteps is None else timesteps
    reported = range(1, timesteps + 1) if isinstance(timesteps, int) else sorted(set(timesteps))
    if not reported or reported[0] < 1:
        raise ValueError(f"timesteps must be at least 1, got {timesteps}")
    last = reported[-1]
    exits = None if exit_confidence is None else _Exits(snn.exit_limits(exit_confidence))
    last = max(last, len(exits.limits)) if exits else last
    device = next(snn.network.parameters()).device
    meter, logits, reference = Meter(snn.network), _Logits(last), dense(snn)
    remaining = iter(batches)
    first = next(remaining, None)
    if not int(smallest(torch.tensor(0 if first is None else len(first[0])))):
        raise DataError("there are no images to score")
    modules: list[ModuleError] = []
    digests: list[str] = []
    parts = Parts()

    def score(images: Tensor, labels: Tensor) -> None:
        nonlocal modules
        x, y = images.to(device), labels.to(device)
        ann = snn.ann(x)
        check_labels(y, ann.shape[1])
        meter.observing = not logits.images
        modules = modules or diagnose(snn, x, last)
        with meter.undone_on_error(), meter, torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
            readout = snn(meter.show(x), last, chunk=1).float()
        check_finite(readout)
        logits.add(readout, ann, y)
        if exits:
            exits.add(readout, ann, y, energy(meter.spent()))

    for x, y in chain(apart(first, -(-DIAGNOSED // processes())) if first else [], remaining):
        digests += map(digest, x)
        parts.run(score, x, y)
    logits.join()
    costs = Costs.of(meter.over_processes(), reference, snn.recipe.synchronous)
    latency = depth(snn.network, snn.input_size) if snn.recipe.synchronous else 1
    scored = collected(digests)
    points = logits.points(reported, costs, latency)
    ann_top1 = 100 * logits.ann_right / logits.images
    return Evaluation(
        images=logits.images,
        digest=set_digest(scored),
        calibration={"images": len(snn.calibrated_on), "scored": len(set(scored) & set(snn.calibrated_on))},
        ann_top1=ann_top1,
        points=points,
        modules=modules,
        costs=costs,
        audit=Audit.of(costs, min(DIAGNOSED, logits.images)),
        exit=exits.finished(exit_confidence, logits.images, reference.energy()) if exits and exit_confidence else None,
        advice=tuple(advise(points, ann_top1, modules, snn.recipe)),
    )
