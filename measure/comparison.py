"""Running comparison of what is read out with the labels, and with the ANN where there is one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..spiking.shards import smallest, total
from .cost import Costs
from .evaluation import EarlyExit, Point
from .exits import stops


class Logits:
    """Running sums over the images, for each timestep.

    They stay where the logits are, and the host waits for them when a figure is read.

    Args:
        timesteps: T.
        device: of the logits.

    Attributes:
        finite: whether all logits were finite.
    """

    def __init__(self, timesteps: int, device: torch.device) -> None:
        self.images = self.compared = self.between = 0
        self.right, self.agreed = torch.zeros(2, timesteps, device=device)
        self.difference = torch.zeros(timesteps, dtype=torch.float64, device=device)
        self.size, self.ann_right, self.exact_right = torch.zeros(3, dtype=torch.float64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def add(self, readout: Tensor, ann: Tensor | None, exact: Tensor | None, labels: Tensor) -> None:
        """A batch: ``[T, B, classes]``, ``[B, classes]`` twice, and ``[B]``."""
        guess = readout.argmax(-1)
        self.images += len(labels)
        self.right += (guess == labels).sum(1)
        self.finite &= readout.isfinite().all()
        if exact is not None:
            self.between += len(labels)
            self.exact_right += (exact.argmax(-1) == labels).sum()
        if ann is not None:
            prediction = ann.argmax(-1)
            self.compared += len(labels)
            self.ann_right += (prediction == labels).sum()
            self.agreed += (guess == prediction).sum(1)
            self.difference += (readout - ann).double().square().sum((1, 2))
            self.size += ann.double().square().sum()
            self.finite &= ann.isfinite().all()

    def join(self) -> None:
        """Take in what the other processes of the group compared."""
        self.images, self.compared, self.between = total(torch.tensor([self.images, self.compared, self.between])).tolist()
        self.right, self.agreed, self.difference = map(total, (self.right, self.agreed, self.difference))
        self.size, self.ann_right, self.exact_right = map(total, (self.size, self.ann_right, self.exact_right))
        self.finite = smallest(self.finite.int()).bool()

    @property
    def ann_top1(self) -> float | None:
        """Accuracy of the ANN in per cent."""
        return 100 * float(self.ann_right) / self.images if self.compared else None

    @property
    def substitute_top1(self) -> float | None:
        """Accuracy of the substitute in per cent."""
        return 100 * float(self.exact_right) / self.images if self.between else None

    def points(self, timesteps: Iterable[int], costs: Costs, latency: int) -> tuple[Point, ...]:
        """The figures after so many timesteps, if ``latency`` timesteps are between the image and a readout."""
        spikes, operations = costs.spikes_per_neuron().tolist(), costs.so_far().sum(1).tolist()
        energies, dense = costs.energy().tolist(), costs.ann.energy()
        errors = (self.difference / self.size.clamp(min=torch.finfo(torch.float64).tiny)).sqrt().tolist()
        right, agreed = self.right.tolist(), self.agreed.tolist()
        return tuple(
            Point(
                timestep=t,
                top1=100 * right[t - 1] / self.images,
                agreement=100 * agreed[t - 1] / self.images if self.compared else None,
                relative_error=errors[t - 1] if self.compared else None,
                spikes_per_neuron=spikes[t - 1],
                operations=operations[t - 1] / costs.ann.macs,
                energy=energies[t - 1] / dense,
                latency=latency * t,
            )
            for t in timesteps
        )


class Exits:
    """Running sums over the images of what they stop with, where the limits are.

    Args:
        limits: how sure the readout has to be after each timestep, ``[T]``, on the device of the logits.
        confidence: that they were asked for with.
    """

    def __init__(self, limits: Tensor, confidence: float) -> None:
        self.limits, self.confidence = limits, confidence
        self.right, self.agreed, self.energy = torch.zeros(3, dtype=torch.float64, device=limits.device)
        self.compared = False
        self.stopped = torch.zeros_like(limits)

    def add(self, readout: Tensor, ann: Tensor | None, labels: Tensor, spent: Tensor) -> None:
        """A batch: ``[T, B, classes]``, ``[B, classes]``, ``[B]``, and the energy in each timestep ``[T, B]``."""
        readout = readout[: len(self.limits)]
        at = stops(readout, self.limits)
        guess = readout.argmax(-1).gather(0, at[None])[0]
        self.right += (guess == labels).sum()
        if ann is not None:
            self.compared = True
            self.agreed += (guess == ann.argmax(-1)).sum()
        self.energy += spent.cumsum(0).gather(0, at[None]).sum()
        self.stopped += (at == torch.arange(len(self.limits), device=at.device)[:, None]).sum(1)

    def finished(self, images: int, dense: float) -> EarlyExit:
        """The means over all processes' images, energies relative to ``dense``."""
        right, agreed, spent, stopped = (total(x).cpu() for x in (self.right, self.agreed, self.energy, self.stopped))
        timesteps = float((stopped * torch.arange(1, len(stopped) + 1)).sum()) / images
        return EarlyExit(
            confidence=self.confidence,
            limits=tuple(None if limit == torch.inf else limit for limit in self.limits.tolist()),
            top1=100 * float(right) / images,
            agreement=100 * float(agreed) / images if self.compared else None,
            timesteps=timesteps,
            energy=float(spent) / images / dense,
            stopped=tuple((100 * stopped / images).tolist()),
        )
