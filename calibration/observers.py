"""Observers: the statistic of a stream of magnitudes that becomes a threshold.

An observer sees magnitudes ``[channels, samples]`` in any number of batches, keeps a state of constant size, and gives one
threshold for each channel. Observers of two shards of the data merge into the observer of the whole, and the value of those of
several processes is that of the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..spiking.shards import largest
from .code import Code, mean_errors, points, squared_errors, thresholds
from .histogram import BINS, PER_OCTAVE, Histogram, edges

TINY = torch.finfo(torch.float64).tiny


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
        maximum = magnitudes.amax(1).double().cpu()
        self.maximum = maximum if self.maximum is None else torch.maximum(self.maximum, maximum)

    def value(self) -> Tensor:
        """The maximum so far."""
        assert self.maximum is not None, "value() before any update()"
        return largest(self.maximum)

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
        return self.histogram.over_processes().percentile(self.percentile)


def _candidates(histogram: Histogram) -> range:
    """Bins whose lower edges are worth trying as thresholds: eight octaves below a channel's largest magnitude to one above."""
    occupied = histogram.counts > 0
    tops = (occupied * torch.arange(BINS)).amax(1)[occupied.any(1)]
    lowest, highest = (int(tops.min()), int(tops.max())) if len(tops) else (0, 0)
    return range(max(lowest - 8 * PER_OCTAVE, 1), min(highest + PER_OCTAVE, BINS) + 1)


class MseObserver(HistogramObserver):
    """The threshold, and the ratio of levels, that minimise the mean squared error of the decoded value."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code

    def value(self) -> Tensor:
        """The best threshold for the alphabet's own ratio."""
        return self.search([self.code.alphabet.ratio])[0]

    def search(self, ratios: Sequence[float], silence: float = 0.0, least: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """The best of the candidate thresholds and of ``ratios`` for each channel, by exhaustive search on the histogram.

        Args:
            ratios: ρ that may be chosen.
            silence: magnitudes below it send nothing, and its square is the price of a spike that is sent.
            least: thresholds below it are not chosen, for each channel or for all.

        Returns:
            Thresholds and ratios, both ``[channels]`` float64.
        """
        histogram = self.histogram.over_processes()
        candidates = _candidates(histogram)
        span = slice(2 * candidates.start, 2 * candidates.stop - 1)
        tried, least = thresholds()[span], torch.as_tensor(least).reshape(-1, 1)
        errors = self._errors(tuple(ratios), span, silence).flatten(0, 1)  # [thresholds * ratios, BINS]
        excluded = (tried < least).repeat_interleave(len(ratios), 1)
        best = (histogram.counts.float() @ errors.T).masked_fill(excluded, torch.inf).argmin(1)  # [channels]
        chosen = torch.tensor(ratios, dtype=torch.float64)[best % len(ratios)]
        return torch.maximum(tried[best // len(ratios)], least.flatten()), chosen

    def _errors(self, ratios: tuple[float, ...], span: slice, silence: float) -> Tensor:
        """``[thresholds, ratios, BINS]``: the cost of a magnitude, for the thresholds in ``span``."""
        errors = mean_errors(self.code, ratios)[span]
        if not silence:
            return errors
        values = points().float()
        squares, silent = values.square(), values < silence
        errors = torch.where(silent.all(1), squares.mean(1), errors + silence**2)
        for split in (silent.any(1) & ~silent.all(1)).nonzero().flatten().tolist():  # a bin with both, if there is one
            spoken = torch.stack([squared_errors(self.code, ratio)[span, split] for ratio in ratios], 1) + silence**2
            errors[..., split] = torch.where(silent[split], squares[split], spoken).mean(-1)
        return errors


class EntropyObserver(HistogramObserver):
    """The threshold that minimises the Kullback-Leibler divergence of the decoded distribution from the true one.

    As in TensorRT's calibration (Migacz, GTC 2017): the true distribution is cut off at the threshold, what lies beyond it
    counted in its last bin; in the decoded one, all values below the threshold that decode alike share their probability
    evenly, by width, over the occupied bins they come from. The smallest of equally good thresholds is taken.
    """

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code

    def value(self) -> Tensor:
        """The best of the candidate thresholds for each channel, by exhaustive search on the histogram."""
        edge, histogram = edges(), self.histogram.over_processes()
        candidates, counts = _candidates(histogram), histogram.counts.double()
        divergence = torch.stack([self._divergence(edge[: end + 1], counts) for end in candidates])
        return edge[candidates][divergence.argmin(0)]

    def _divergence(self, edge: Tensor, counts: Tensor) -> Tensor:
        """For each channel, with the last of the edges as threshold."""
        inside, end = counts[:, : len(edge) - 1], len(edge) - 1
        centre = (edge[1:] + edge[:-1]) / 2
        centre[0] = 0.0
        level = self.code.decode(centre, edge[-1]).unique(return_inverse=True)[1].expand_as(inside)
        width = torch.where(inside > 0, edge.diff(), 0.0)
        mass = torch.zeros_like(inside).scatter_add_(1, level, inside).gather(1, level)
        room = torch.zeros_like(inside).scatter_add_(1, level, width).gather(1, level)
        decoded = mass * width / room.clamp(min=TINY)
        true = inside.clone()
        true[:, -1] += counts[:, end:].sum(1)
        true, decoded = (p / p.sum(1, keepdim=True).clamp(min=TINY) for p in (true, decoded))
        divergence: Tensor = torch.special.xlogy(true, true.clamp(min=TINY) / decoded.clamp(min=TINY)).sum(1)
        return divergence


OBSERVERS: dict[str, Callable[[float, Code], Observer]] = {
    "max": lambda percentile, code: MaxObserver(),
    "percentile": lambda percentile, code: PercentileObserver(percentile),
    "mse": lambda percentile, code: MseObserver(code),
    "entropy": lambda percentile, code: EntropyObserver(code),
}
"""Observers by the name that recipes use."""
