"""Calibration of the coded neurons of a network on sample images.

A first pass over the images runs the network with analog neurons, that is the ANN, and takes the mean of every neuron's
input: the prior. The thresholds then come from one of two sources. Static ones come from the
activations of the ANN. Closed-loop ones, one for each timestep, come from a pass that runs the spiking network itself: each
neuron calibrates itself before it passes anything on, so the threshold of step t fits the innovations x[t] - m[t-1] of a
network whose earlier neurons and earlier steps are calibrated already, and the bias of step t is what the decoded value
then lacks in the mean. Statistics accumulate over batches, so that any number of images streams through in constant
memory; later batches refine what the first one set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..spiking import Clock, CodedNeuron, Event, Neuron, analog, neurons, probing, simulate
from ..spiking.coding import emit, innovation, integrate
from .activity import Activity, observe
from .channels import from_channels, to_channels
from .observers import OBSERVERS, Observer

Prior = Literal["none", "mean", "minimum"]

STEEPEST = 0.3
"""A closed-loop threshold is at least this share of the one before it. Innovations that are larger than any on the calibration
images would otherwise never be made up for: the thresholds of all later steps together would be too small to reach them."""


@dataclass(frozen=True)
class ThresholdRule:
    """How thresholds follow from what a neuron sees.

    Args:
        observer: a name in `OBSERVERS`.
        percentile: of the ``percentile`` observer, 0..100.
        headroom: the threshold is this multiple of the observer's value.
        closed_loop: a threshold for each timestep, from the innovations of the spiking network; otherwise one for all
            timesteps, from the activations of the ANN.
    """

    observer: str = "percentile"
    percentile: float = 99.9
    headroom: float = 4.0
    closed_loop: bool = True


def calibrate(
    network: nn.Module,
    clock: Clock,
    batches: Iterable[Tensor],
    timesteps: int,
    rule: ThresholdRule,
    prior: Prior = "mean",
    bias: bool = True,
) -> None:
    """Set thresholds, priors and biases of all coded neurons of ``network``, whose neurons share ``clock``.

    Args:
        network: in evaluation mode.
        clock: the clock of its neurons.
        batches: images ``[B, C, H, W]``; iterated two or three times.
        timesteps: how many steps are calibrated for.
        rule: where thresholds come from.
        prior: the ``mean`` activation at each position, the ``minimum`` of each channel, or ``none``.
        bias: whether each step gets a bias for each channel.

    Raises:
        ModelError: a neuron's input is not finite; the message names the neuron.
    """
    found = {name: n for name, n in neurons(network) if isinstance(n, CodedNeuron) and n.alphabet is not None}
    activity = observe(network, clock, batches, found)
    for name, neuron in found.items():
        seen = activity[name]
        neuron.prior = {"none": torch.zeros_like(seen.scale), "mean": seen.mean, "minimum": seen.minimum}[prior]
        neuron.bias = seen.scale.new_empty(0)
    if not rule.closed_loop:
        _set_static_thresholds(network, clock, batches, timesteps, rule, activity, found)
    if rule.closed_loop or bias:
        loops = {name: _ClosedLoop(neuron, activity[name], rule, bias) for name, neuron in found.items()}
        with _in_place_of_neurons(network, loops), torch.no_grad():
            for batch in batches:
                for loop in loops.values():
                    loop.aim = None
                simulate(network, clock, batch, 1)
                simulate(network, clock, batch, timesteps)
        for loop in loops.values():
            loop.finish()


def _set_static_thresholds(
    network: nn.Module,
    clock: Clock,
    batches: Iterable[Tensor],
    timesteps: int,
    rule: ThresholdRule,
    activity: dict[str, Activity],
    found: dict[str, CodedNeuron],
) -> None:
    observers = {name: OBSERVERS[rule.observer](rule.percentile, decoder(n, timesteps)) for name, n in found.items()}
    shapes: dict[str, Tensor] = {}

    def probe(name: str, neuron: CodedNeuron) -> Callable[[Event], None]:
        def see(event: Event) -> None:
            observers[name].update(_magnitudes(neuron, event.target - neuron.prior))
            shapes[name] = event.target[:1]

        return see

    with probing(network, {name: probe(name, n) for name, n in found.items()}), analog(network), torch.no_grad():
        for batch in batches:
            simulate(network, clock, batch, 1)
    for name, neuron in found.items():
        neuron.threshold = _threshold(neuron, observers[name], rule, activity[name], shapes[name]).unsqueeze(0)


def decoder(neuron: CodedNeuron, timesteps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """``decode(values, thresholds)``: what ``timesteps`` steps of this neuron make of constant deviations."""
    alphabet, coding = neuron.alphabet, neuron.coding
    assert alphabet is not None

    def decode(values: Tensor, thresholds: Tensor) -> Tensor:
        values, thresholds = torch.broadcast_tensors(values, thresholds)
        d = torch.zeros_like(values)
        for t in range(timesteps):
            spikes = emit(alphabet, innovation(coding, t, values, d), thresholds, neuron.spikes_per_step)
            d = integrate(coding, t, d, spikes)
        return d

    return decode


def _magnitudes(neuron: CodedNeuron, u: Tensor) -> Tensor:
    assert neuron.alphabet is not None
    return to_channels(neuron.alphabet.magnitudes(u), neuron.axes if neuron.per_channel else ())


def _threshold(neuron: CodedNeuron, observer: Observer, rule: ThresholdRule, seen: Activity, x: Tensor) -> Tensor:
    """The observer's value with head-room, in the shape that broadcasts against one image of ``x``; never 0.

    A neuron, channel or step that was silent on the calibration images may still have to fire on others, so its threshold
    is a small share of what the rest of the neuron has.
    """
    values = observer.value() * rule.headroom
    floor = max(float(values.max()) * 2.0**-10, float(seen.scale) * 2.0**-20)
    values = values.clamp(min=floor) if floor > 0 else torch.ones_like(values)
    return from_channels(values, x, neuron.axes if neuron.per_channel else ())


class _ClosedLoop(Neuron):
    """Stands in for a coded neuron during calibration: at each step it sets threshold and bias first, then fires.

    The bias makes up for what the decoded value lacks to the ANN's on the same images, in the mean of each channel. So every
    batch is shown twice: without an aim the neuron passes its input through, as the ANN does, and takes its mean as the aim.
    """

    def __init__(self, neuron: CodedNeuron, seen: Activity, rule: ThresholdRule, bias: bool) -> None:
        super().__init__()
        self.neuron, self.seen, self.rule, self.has_bias = neuron, seen, rule, bias
        self.clock = neuron.clock
        self.observers: list[Observer] = []
        self.thresholds: list[Tensor] = []
        self.lacks: list[Tensor] = []  # [channels], summed over images
        self.images: list[int] = []
        self.aim: Tensor | None = None

    def step(self, t: int, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        neuron = self.neuron
        if self.aim is None:
            self.aim = to_channels(x, neuron.axes).mean(1)
            return x, x
        assert neuron.alphabet is not None
        d = torch.zeros_like(x) if state is None else state
        u = innovation(neuron.coding, t, x - neuron.prior, d)
        spikes = emit(neuron.alphabet, u, self._threshold(t, u), neuron.spikes_per_step)
        d = integrate(neuron.coding, t, d, spikes)
        if self.has_bias:
            d = d + from_channels(self._lacking(t, neuron.prior + d, self.aim), x, neuron.axes)
        return neuron.prior + d, d

    def _threshold(self, t: int, u: Tensor) -> Tensor:
        if not self.rule.closed_loop:
            return self.neuron.threshold[0]
        if t == len(self.observers):
            self.observers.append(OBSERVERS[self.rule.observer](self.rule.percentile, decoder(self.neuron, 1)))
            self.thresholds.append(u)
        self.observers[t].update(_magnitudes(self.neuron, u))
        threshold = _threshold(self.neuron, self.observers[t], self.rule, self.seen, u)
        if t > 0:
            threshold = torch.maximum(threshold, STEEPEST * self.thresholds[t - 1])
        self.thresholds[t] = threshold
        return threshold

    def _lacking(self, t: int, decoded: Tensor, aim: Tensor) -> Tensor:
        """What the decoded value of step t lacks to the ANN's mean, by channel, over all images so far."""
        lack = (aim - to_channels(decoded, self.neuron.axes).mean(1)) * len(decoded)
        if t == len(self.lacks):
            self.lacks.append(torch.zeros_like(lack))
            self.images.append(0)
        self.lacks[t] = self.lacks[t] + lack
        self.images[t] += len(decoded)
        return self.lacks[t] / self.images[t]

    def finish(self) -> None:
        """Hand the tables over to the neuron."""
        if self.thresholds:
            self.neuron.threshold = torch.stack(self.thresholds)
        if self.lacks:
            like = self.seen.mean.unsqueeze(0)
            self.neuron.bias = torch.stack(
                [
                    from_channels(lack / images / self.neuron.coding.coefficients(t)[1], like, self.neuron.axes)
                    for t, (lack, images) in enumerate(zip(self.lacks, self.images, strict=True))
                ]
            )


@contextmanager
def _in_place_of_neurons(network: nn.Module, loops: dict[str, _ClosedLoop]) -> Iterator[None]:
    try:
        for name, loop in loops.items():
            network.set_submodule(name, loop)
        yield
    finally:
        for name, loop in loops.items():
            network.set_submodule(name, loop.neuron)
