"""Observers: the statistic of a stream of magnitudes that becomes a threshold.

An observer sees magnitudes ``[channels, samples]`` in any number of batches, keeps a state of constant size, and gives one
threshold for each channel. Observers of two shards of the data merge into the observer of the whole, and the value of those of
several processes is that of the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..spiking.alphabet import is_at_hand
from ..spiking.shards import largest
from .code import Code, decoded_alike, float64, mean_errors, points, squared_errors, thresholds
from .histogram import BINS, PER_OCTAVE, Histogram, edges

TINY = torch.finfo(torch.float64).tiny
AT_ONCE = 16  # channels, so that memory stays small


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
        maximum = magnitudes.amax(1).double()
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


def _worth_trying(counts: Tensor, places: Tensor) -> Tensor:
    """Which ``places`` on the scale of bins (any shape) are worth trying as thresholds, by counts ``[channels, BINS]``.

    Those are from eight octaves below a channel's largest magnitude to one above.
    """
    tops = torch.where(counts > 0, torch.arange(BINS, device=counts.device), 0).amax(1)
    return (places >= (tops.amin() - 8 * PER_OCTAVE).clamp(min=1)) & (places <= tops.amax() + PER_OCTAVE)


def _span(tempting: Tensor) -> slice:
    """A part of the thresholds that has all those in it that are worth trying, ``[thresholds]``, so that work is saved.

    It is all of them where the host would have to wait for a device to know better.
    """
    if not is_at_hand(tempting):
        return slice(None)
    places = tempting.nonzero()
    return slice(int(places[0]), int(places[-1]) + 1)


class MseObserver(HistogramObserver):
    """The threshold, and the ratio of levels, that minimise the mean squared error of the decoded value."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code

    def value(self) -> Tensor:
        """The best threshold for the alphabet's own ratio."""
        return self.search([self.code.alphabet.ratio])[0]

    def search(
        self, ratios: Sequence[float], silence: Tensor | None = None, least: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The best of the candidate thresholds and of ``ratios`` for each channel, by exhaustive search on the histogram.

        Args:
            ratios: ρ that may be chosen.
            silence: magnitudes below this scalar send nothing, and its square is the price of a spike that is sent.
            least: thresholds below it are not chosen, for each channel or for all.

        Returns:
            Thresholds and ratios, both ``[channels]`` float64.
        """
        counts, tempting, span = self._tempting()
        device = counts.device
        tried, least = thresholds(device)[span], torch.as_tensor(least).reshape(-1, 1)
        errors = self._errors(tuple(ratios), span, silence, device).flatten(0, 1)  # [thresholds * ratios, BINS]
        excluded = (~tempting | (tried < least)).repeat_interleave(len(ratios), 1)
        best = (counts.float() @ errors.T).masked_fill(excluded, torch.inf).argmin(1)  # [channels]
        chosen = float64(tuple(ratios), device)[best % len(ratios)]
        return torch.maximum(tried[best // len(ratios)], least.flatten()), chosen

    def _errors(self, ratios: tuple[float, ...], span: slice, silence: Tensor | None, device: torch.device) -> Tensor:
        """``[thresholds, ratios, BINS]``: the cost of a magnitude, for the thresholds in ``span``."""
        errors = mean_errors(self.code, ratios, device)[span]
        if silence is None:
            return errors
        values = points(device).float()
        squares, silent = values.square(), values < silence
        errors = torch.where(silent.all(1), squares.mean(1), errors + silence**2)
        split = (silent.any(1) & ~silent.all(1)).int().argmax(0, keepdim=True)  # a bin with both; the first if there is none
        spoken = torch.stack([squared_errors(self.code, ratio, device)[span, split] for ratio in ratios], 1) + silence**2
        errors[..., split] = torch.where(silent[split], squares[split], spoken).mean(-1)
        return errors

    def _tempting(self) -> tuple[Tensor, Tensor, slice]:
        """The counts of all processes, which thresholds in a span of them are worth trying, and the span."""
        counts = self.histogram.over_processes().counts
        tempting = _worth_trying(counts, torch.arange(2 * BINS, device=counts.device) / 2)
        span = _span(tempting)
        return counts, tempting[span], span

    def schedule(self, falls: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The best first threshold, and share by which thresholds fall from timestep to timestep, for each channel.

        Best is what leaves the least error after all timesteps of constant values.

        Args:
            falls: the shares that may be chosen.

        Returns:
            Thresholds and shares, both ``[channels]`` float64.
        """
        costs, tried = self._scheduled(falls)
        best = costs.flatten(1).argmin(1)
        return tried[best // len(falls)], float64(tuple(falls), costs.device)[best % len(falls)]

    def least_error(self, falls: Sequence[float]) -> Tensor:
        """The squared error that the best such schedule leaves, summed up over what was seen, ``[channels]``."""
        return self._scheduled(falls)[0].flatten(1).amin(1)

    def _scheduled(self, falls: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The squared errors ``[channels, thresholds, falls]`` of all schedules, and the first thresholds."""
        counts, tempting, span = self._tempting()
        device, ratio = counts.device, (self.code.alphabet.ratio,)
        errors = [mean_errors(replace(self.code, fall=fall), ratio, device)[span, 0] for fall in falls]
        costs = torch.stack([counts.float() @ error.T for error in errors], 2)
        return costs.masked_fill(~tempting[:, None], torch.inf), thresholds(device)[span]


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
        counts = self.histogram.over_processes().counts
        candidates = torch.arange(1, BINS + 1, device=counts.device)
        divergence = torch.cat([self._divergence(some.double()) for some in counts.split(AT_ONCE)])
        excluded = ~_worth_trying(counts, candidates)
        return edges(counts.device)[candidates][divergence.masked_fill(excluded, torch.inf).argmin(1)]

    def _divergence(self, counts: Tensor) -> Tensor:
        """``[channels, BINS]``: with the upper edge of each bin as threshold."""
        below = torch.ones(BINS, BINS, dtype=torch.bool, device=counts.device).tril()  # thresholds along the first axis
        inside = counts[:, None] * below
        level = decoded_alike(self.code, counts.device).expand_as(inside)
        width = torch.where(inside > 0, edges(counts.device).diff(), 0.0)
        mass = torch.zeros_like(inside).scatter_add_(2, level, inside).gather(2, level)
        room = torch.zeros_like(inside).scatter_add_(2, level, width).gather(2, level)
        decoded = mass * width / room.clamp(min=TINY)
        true = inside + (counts.sum(1, keepdim=True) - counts.cumsum(1)).diag_embed()
        true, decoded = (p / p.sum(2, keepdim=True).clamp(min=TINY) for p in (true, decoded))
        divergence: Tensor = torch.special.xlogy(true, true.clamp(min=TINY) / decoded.clamp(min=TINY)).sum(2)
        return divergence


OBSERVERS: dict[str, Callable[[float, Code], Observer]] = {
    "max": lambda percentile, code: MaxObserver(),
    "percentile": lambda percentile, code: PercentileObserver(percentile),
    "mse": lambda percentile, code: MseObserver(code),
    "entropy": lambda percentile, code: EntropyObserver(code),
}
"""Observers by the name that recipes use."""
