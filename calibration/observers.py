"""Observers: the statistic of a stream of magnitudes that becomes a threshold.

An observer sees magnitudes ``[channels, samples]`` in any number of batches, keeps a state of constant size, and gives one
threshold for each channel. Observers of two shards of the data merge into the observer of the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .histogram import BINS, Histogram, edges

Decode = Callable[[Tensor, Tensor], Tensor]
"""``decode(values, thresholds)``: what a receiver decodes when a neuron with these thresholds codes these values."""


class Observer(ABC):
    """A statistic with ``update``, ``value`` and ``merge``."""

    @abstractmethod
    def update(self, magnitudes: Tensor) -> None:
        """See a batch of magnitudes ``[channels, samples]``, all at least 0."""

    @abstractmethod
    def value(self) -> Tensor:
        """The threshold of each channel, ``[channels]`` float64, 0 for a channel that was always 0."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Take in what another observer of the same kind saw."""


class MaxObserver(Observer):
    """The largest magnitude (Diehl et al., IJCNN 2015: threshold balancing by the maximal activation)."""

    def __init__(self) -> None:
        self.maximum: Tensor | None = None

    def update(self, magnitudes: Tensor) -> None:
        """See ``[channels, samples]``."""
        largest = magnitudes.amax(1).double().cpu()
        self.maximum = largest if self.maximum is None else torch.maximum(self.maximum, largest)

    def value(self) -> Tensor:
        """The maximum so far."""
        assert self.maximum is not None, "value() before any update()"
        return self.maximum

    def merge(self, other: MaxObserver) -> None:
        """The larger of both maxima."""
        if other.maximum is not None:
            self.update(other.maximum.unsqueeze(1))


class HistogramObserver(Observer):
    """The base of the observers that read a histogram."""

    def __init__(self) -> None:
        self.histogram = Histogram()

    def update(self, magnitudes: Tensor) -> None:
        """See ``[channels, samples]``."""
        self.histogram.update(magnitudes)

    def merge(self, other: HistogramObserver) -> None:
        """Add the other's counts."""
        self.histogram.merge(other.histogram)


class PercentileObserver(HistogramObserver):
    """A percentile of the magnitudes (Rueckauer et al., Frontiers in Neuroscience 2017)."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.percentile = percentile

    def value(self) -> Tensor:
        """The percentile so far."""
        return self.histogram.percentile(self.percentile)


def _candidates(histogram: Histogram) -> Tensor:
    """Thresholds worth trying: bin edges from twice the largest magnitude down eight octaves, two to the half octave."""
    occupied = histogram.counts.sum(0).nonzero()
    top = int(occupied[-1]) + 1 + PER_SEARCH if len(occupied) else 1
    return edges()[range(min(top, BINS), max(top - 9 * PER_SEARCH, 0), -2)]


PER_SEARCH = 8  # bins to an octave


class MseObserver(HistogramObserver):
    """The threshold that minimises the mean squared error of the decoded value."""

    def __init__(self, decode: Decode) -> None:
        super().__init__()
        self.decode = decode

    def value(self) -> Tensor:
        """The best of the candidate thresholds for each channel, by exhaustive search on the histogram."""
        edge = edges()
        centre = (edge[1:] + edge[:-1]) / 2
        centre[0] = 0.0
        candidates = _candidates(self.histogram)
        error = (self.decode(centre.unsqueeze(0), candidates.unsqueeze(1)) - centre).square()
        return candidates[(self.histogram.counts.double() @ error.T).argmin(1)]


class EntropyObserver(HistogramObserver):
    """The threshold that minimises the Kullback-Leibler divergence of the decoded distribution from the true one.

    As in TensorRT's calibration (Migacz, GTC 2017): all values that decode alike share their probability evenly over the
    occupied bins they come from, by the width of the bin.
    """

    def __init__(self, decode: Decode) -> None:
        super().__init__()
        self.decode = decode

    def value(self) -> Tensor:
        """The best of the candidate thresholds for each channel, by exhaustive search on the histogram."""
        edge = edges()
        centre, width = (edge[1:] + edge[:-1]) / 2, edge[1:] - edge[:-1]
        centre[0] = 0.0
        candidates = _candidates(self.histogram)
        true = self.histogram.counts.double()
        true = true / true.sum(1, keepdim=True).clamp(min=1)
        share = torch.where(true > 0, width, 0.0)
        divergences = []
        for threshold in candidates:
            level = self.decode(centre, threshold).unique(return_inverse=True)[1].expand_as(true)
            mass = torch.zeros_like(true).scatter_add_(1, level, true).gather(1, level)
            room = torch.zeros_like(true).scatter_add_(1, level, share).gather(1, level)
            decoded = mass * share / room.clamp(min=torch.finfo(torch.float64).tiny)
            divergences.append(torch.special.xlogy(true, true / decoded.where(true > 0, torch.ones(()))).sum(1))
        return candidates[torch.stack(divergences).argmin(0)]


OBSERVERS: dict[str, Callable[[float, Decode], Observer]] = {
    "max": lambda percentile, decode: MaxObserver(),
    "percentile": lambda percentile, decode: PercentileObserver(percentile),
    "mse": lambda percentile, decode: MseObserver(decode),
    "entropy": lambda percentile, decode: EntropyObserver(decode),
}
"""Observers by the name that recipes use."""
