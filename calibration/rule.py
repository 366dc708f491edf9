"""How the levels of a neuron's spikes follow from the magnitudes that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, takewhile

import torch
from torch import Tensor

from ..spiking import CodedNeuron, Ladder
from .activity import Activity
from .channels import from_channels
from .code import Code
from .moving import Moving
from .observers import OBSERVERS, MseObserver, Observer

PRICE_FALL = 5.0
"""A spike is worth this much less at each further timestep: somewhat less than the squared error of the logits falls by."""

STEEPEST = 0.5
"""A threshold is at least this share of the one at the timestep before. Values larger than any on the calibration images would
otherwise never be made up for: the thresholds of all later timesteps together would be too small to reach them."""

FALLS = (0.2, 0.22, 0.25, 0.27, 0.29, 0.31, 1 / 3, 0.36, 0.4, 0.45, 0.5)
"""Shares by which thresholds of a layer-synchronous neuron may fall from timestep to timestep. A third makes balanced ternary
numbers, evenly spaced; less leaves gaps between larger values, for finer steps of small ones, as softmax has them."""

FEWEST = 500
"""Samples that a channel needs for a threshold of its own: a value beyond the largest of few would never be made up for."""


@dataclass(frozen=True)
class ThresholdRule:
    """How the levels of spikes follow from what a neuron sees.

    Args:
        observer: a name in `OBSERVERS`. ``mse`` also chooses the ratio of levels: 2, or a finer 2^(1/m), or the alphabet's.
        percentile: of the ``percentile`` observer, 0..100.
        headroom: the threshold is this multiple of the observer's value.
        closed_loop: levels for each timestep, from the innovations of the spiking network; otherwise one threshold for all
            timesteps, from the activations of the ANN.
        price: the relative squared error of the logits that a spike has to save for each accumulate that it causes, at the
            first timestep; it falls with time. A neuron keeps silent where a spike would save less.
    """

    observer: str = "percentile"
    percentile: float = 99.9
    headroom: float = 4.0
    closed_loop: bool = True
    price: float = 0.0

    def watch(self, neuron: CodedNeuron, timesteps: int) -> Observer:
        """A new observer for a neuron whose levels will serve ``timesteps`` timesteps."""
        return OBSERVERS[self.observer](self.percentile, Code.of(neuron, timesteps))

    def levels(
        self, neuron: CodedNeuron, observer: Observer, seen: Activity, t: int = 0, before: Ladder | None = None
    ) -> Ladder:
        """What the observer's statistic makes of timestep ``t``, ``before`` which others were; thresholds are never 0.

        Shapes broadcast against one image's input.

        A neuron, channel or step that was silent on the calibration images may still have to fire on others, so its
        threshold is a small share of what the rest of the neuron has.
        """
        assert neuron.alphabet is not None
        silence = seen.silence(self.price / PRICE_FALL**t)
        least = STEEPEST * before.threshold.flatten().double() if before else torch.zeros_like(seen.scale).double().unsqueeze(0)
        if isinstance(observer, MseObserver):
            lowest = _usual(silence) if self.price else None
            values, ratios = observer.search(finer_ratios(neuron.alphabet.ratio), lowest, least / self.headroom)
        else:
            values = observer.value()
            ratios = torch.full_like(values, neuron.alphabet.ratio)
        return self._ladder(neuron, seen, torch.maximum(values * self.headroom, least), ratios, silence)

    def is_scheduled(self, neuron: CodedNeuron) -> bool:
        """Whether all timesteps of a neuron have their levels at once: it spends them all on one value."""
        return neuron.synchronous > 0 and self.observer == "mse" and not self.price

    def of_moving(self, neuron: CodedNeuron, moving: Moving, seen: Activity) -> list[Ladder]:
        """The levels of all timesteps of a neuron whose targets move: the best after the last one."""
        assert neuron.alphabet is not None
        thresholds, silence = moving.best() * self.headroom, seen.silence(0)
        ratios = torch.full_like(thresholds[0], neuron.alphabet.ratio)
        return [self._ladder(neuron, seen, threshold, ratios, silence) for threshold in thresholds]

    def schedule(self, neuron: CodedNeuron, observer: Observer, seen: Activity, timesteps: int) -> list[Ladder]:
        """The levels of all timesteps of a layer-synchronous neuron: the best after the last one."""
        assert isinstance(observer, MseObserver) and neuron.alphabet is not None
        values, falls = observer.schedule(FALLS)
        ratios, silence = torch.full_like(values, neuron.alphabet.ratio), seen.silence(0)
        return [self._ladder(neuron, seen, values * self.headroom * falls**t, ratios, silence) for t in range(timesteps)]

    def _ladder(self, neuron: CodedNeuron, seen: Activity, values: Tensor, ratios: Tensor, silence: Tensor) -> Ladder:
        floor = torch.maximum(values.max() * 2.0**-10, seen.scale.double() * 2.0**-20)
        values = torch.where(floor > 0, values.clamp(min=floor), 1.0)
        axes = threshold_axes(neuron, seen)
        threshold, ratio = (from_channels(column, seen.mean.unsqueeze(0), axes) for column in (values, ratios))
        return Ladder(threshold, ratio, silence)


def _usual(silence: Tensor) -> Tensor:
    """The silence of the mean worth of a spike where it has any; 0 if it has none anywhere."""
    worth = silence.square().reciprocal()  # 0 where silence is infinite
    return (worth.sum() / silence.isfinite().sum()).rsqrt().nan_to_num(nan=0.0)


def finer_ratios(finest: float) -> list[float]:
    """2, √2, 2^(1/3), ..., and ``finest``: a receiver with m stored versions of a weight has 2^(1/m)."""
    return [*takewhile(lambda ratio: ratio > finest * (1 + 1e-6), (2 ** (1 / m) for m in count(1))), finest]


def threshold_axes(neuron: CodedNeuron, seen: Activity) -> tuple[int, ...]:
    """The axes along which thresholds vary: none where a channel has too few samples for a threshold of its own."""
    return neuron.axes if neuron.per_channel and seen.samples() >= FEWEST else ()
