"""Running comparison of what is read out with the labels, and with the ANN where there is one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

import torch
from torch import Tensor

from ..spiking.shards import smallest, total
from .cost import Costs
from .evaluation import EarlyExit, Point, Score
from .exits import stops


class Comparison(ABC):
    """Running sums over the images, for each timestep: of the figures that any output has, and of those of its kind.

    They stay where the readout is, and the host waits for them when a figure is read.

    Args:
        timesteps: T.
        device: of the readout.

    Attributes:
        finite: whether all that was read was finite.
    """

    def __init__(self, timesteps: int, device: torch.device) -> None:
        self.images = self.compared = self.between = 0
        self.difference = torch.zeros(timesteps, dtype=torch.float64, device=device)
        self.size = torch.zeros((), dtype=torch.float64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)

    def add(self, readout: Tensor, ann: Tensor | None, exact: Tensor | None, labels: Tensor) -> None:
        """A batch: ``[T, B, D]``, ``[B, D]`` twice, and ``[B]``."""
        self.images += len(labels)
        self.finite &= readout.isfinite().all()
        self.between += 0 if exact is None else len(labels)
        if ann is not None:
            self.compared += len(labels)
            self.difference += (readout - ann).double().square().sum((1, 2))
            self.size += ann.double().square().sum()
            self.finite &= ann.isfinite().all()

    def join(self) -> None:
        """Take in what the other processes of the group compared."""
        self.images, self.compared, self.between = total(torch.tensor([self.images, self.compared, self.between])).tolist()
        self.difference, self.size = total(self.difference), total(self.size)
        self.finite = smallest(self.finite.int()).bool()

    @abstractmethod
    def figures(self) -> list[dict[str, float | None]]:
        """Of the `Point` at each timestep, those of this kind of output."""

    @property
    @abstractmethod
    def ann(self) -> Score | None:
        """Of the ANN, if there is one."""

    @property
    @abstractmethod
    def substitute(self) -> Score | None:
        """Of the substitute, if there is one."""

    def errors(self) -> list[float]:
        """‖readout - ann‖ / ‖ann‖ at each timestep."""
        return (self.difference / self.size.clamp(min=torch.finfo(torch.float64).tiny)).sqrt().tolist()

    def points(self, timesteps: Iterable[int], costs: Costs, latency: Callable[[int], int]) -> tuple[Point, ...]:
        """The figures after so many timesteps, which are ``latency`` timesteps after the image."""
        spikes, operations = costs.spikes_per_neuron().tolist(), costs.so_far().sum(1).tolist()
        energies, dense = costs.energy().tolist(), costs.ann.energy()
        errors, figures = self.errors(), self.figures()
        return tuple(
            Point(
                timestep=t,
                relative_error=errors[t - 1] if self.compared else None,
                spikes_per_neuron=spikes[t - 1],
                operations=operations[t - 1] / costs.ann.macs,
                energy=energies[t - 1] / dense,
                latency=latency(t),
                **figures[t - 1],
            )
            for t in timesteps
        )


class Classes(Comparison):
    """Logits ``[B, classes]``: whose largest is right, or the ANN's."""

    def __init__(self, timesteps: int, device: torch.device) -> None:
        super().__init__(timesteps, device)
        self.right, self.agreed = torch.zeros(2, timesteps, device=device)
        self.ann_right, self.exact_right = torch.zeros(2, dtype=torch.float64, device=device)

    def add(self, readout: Tensor, ann: Tensor | None, exact: Tensor | None, labels: Tensor) -> None:
        """A batch; see `Comparison.add`."""
        super().add(readout, ann, exact, labels)
        guess = readout.argmax(-1)
        self.right += (guess == labels).sum(1)
        if exact is not None:
            self.exact_right += (exact.argmax(-1) == labels).sum()
        if ann is not None:
            prediction = ann.argmax(-1)
            self.ann_right += (prediction == labels).sum()
            self.agreed += (guess == prediction).sum(1)

    def join(self) -> None:
        """Take in what the other processes of the group compared."""
        super().join()
        self.right, self.agreed = total(self.right), total(self.agreed)
        self.ann_right, self.exact_right = total(self.ann_right), total(self.exact_right)

    def figures(self) -> list[dict[str, float | None]]:
        """Accuracy and agreement."""
        return [
            {"top1": 100 * right / self.images, "agreement": 100 * agreed / self.images if self.compared else None}
            for right, agreed in zip(self.right.tolist(), self.agreed.tolist(), strict=True)
        ]

    @property
    def ann(self) -> Score | None:
        """The ANN's accuracy."""
        return Score(top1=100 * float(self.ann_right) / self.images) if self.compared else None

    @property
    def substitute(self) -> Score | None:
        """The substitute's accuracy."""
        return Score(top1=100 * float(self.exact_right) / self.images) if self.between else None


class Numbers(Comparison):
    """Numbers ``[B, 1]``: how far they are from the labels (NaN where there are none), and how they go with the ANN's."""

    def __init__(self, timesteps: int, device: torch.device) -> None:
        super().__init__(timesteps, device)
        self.error = torch.zeros(timesteps, dtype=torch.float64, device=device)
        self.ann_error, self.exact_error = torch.zeros(2, dtype=torch.float64, device=device)
        self.moments = torch.zeros(5, timesteps, dtype=torch.float64, device=device)

    def add(self, readout: Tensor, ann: Tensor | None, exact: Tensor | None, labels: Tensor) -> None:
        """A batch; see `Comparison.add`."""
        super().add(readout, ann, exact, labels)
        x = readout[..., 0].double()
        self.error += (x - labels).abs().sum(1)
        if exact is not None:
            self.exact_error += (exact[:, 0] - labels).abs().sum()
        if ann is not None:
            y = ann[:, 0].double().expand_as(x)
            self.ann_error += (y[0] - labels).abs().sum()
            self.moments += torch.stack([x, y, x * x, y * y, x * y]).sum(2)

    def join(self) -> None:
        """Take in what the other processes of the group compared."""
        super().join()
        self.error, self.moments = total(self.error), total(self.moments)
        self.ann_error, self.exact_error = total(self.ann_error), total(self.exact_error)

    def figures(self) -> list[dict[str, float | None]]:
        """Mean error and correlation."""
        correlations = map(_correlation, (self.moments / self.images).T.tolist()) if self.compared else repeat(None)
        return [
            {"top1": None, "agreement": None, "mean_error": self._mean(error), "similarity": correlation}
            for error, correlation in zip(self.error.tolist(), correlations, strict=False)
        ]

    @property
    def ann(self) -> Score | None:
        """The ANN's mean error."""
        return Score(mean_error=self._mean(float(self.ann_error))) if self.compared else None

    @property
    def substitute(self) -> Score | None:
        """The substitute's mean error."""
        return Score(mean_error=self._mean(float(self.exact_error))) if self.between else None

    def _mean(self, error: float) -> float | None:
        """Over the images; None if one has no label."""
        return None if math.isnan(error) else error / self.images


def _correlation(moments: Sequence[float]) -> float:
    """Of x and y, from the means of x, y, x², y² and x y; 0 where either does not vary."""
    x, y, xx, yy, xy = moments
    spread = max(xx - x * x, 0) * max(yy - y * y, 0)
    return (xy - x * y) / math.sqrt(spread) if spread else 0.0


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
