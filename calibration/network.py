"""Calibration of the coded neurons of a network on sample images.

A first pass over the images runs the network with analog neurons, that is the ANN, and takes the mean of every neuron's input:
the prior. The thresholds then come from one of two sources. Static ones come from the activations of the ANN. Closed-loop
ones, one for each timestep, come from a pass that runs the spiking network itself: each neuron calibrates itself before it
passes anything on, so the threshold of step t fits the innovations x[t] - m[t-1] of a network whose earlier neurons and earlier
steps are calibrated already, and the bias of step t is what the decoded value then lacks in the mean. Statistics accumulate
over batches, so that any number of images streams through in constant memory; later batches refine what the first one set.

The processes of a group (see `vit2snn.spiking.shards`) calibrate together, each on its share of the images: all end with the
same network, and a batch in each of them counts as one large batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, Event, analog, neurons, probing, simulate
from ..tracing.depth import stages
from ..tracing.reach import reach
from ..tracing.wavefront import wave
from .activity import Activity, observe
from .closed_loop import ClosedLoop, in_place_of_neurons
from .durations import durations
from .innovations import show
from .resting import resting
from .rule import ThresholdRule
from .sensitivity import sensitivities

Prior = Literal["none", "mean", "minimum"]

# Images and random directions of logits from which the worth of a spike is estimated, or only whether it has any.
PRICED_ON, PRICED_BY = 32, 4
SENSED_ON, SENSED_BY = 32, 1


def calibrate(
    network: nn.Module,
    batches: Iterable[Tensor],
    timesteps: int,
    rule: ThresholdRule,
    prior: Prior = "mean",
    bias: bool = True,
    sense: bool = True,
) -> None:
    """Set thresholds, priors and biases of all coded neurons of ``network``.

    Args:
        network: in evaluation mode.
        batches: images ``[B, C, H, W]``; iterated several times. All processes of a group have equally many.
        timesteps: how many steps are calibrated for.
        rule: where thresholds come from.
        prior: the ``mean`` activation at each position (with a price, of what it makes neurons silent about, see `resting`),
            the ``minimum`` of each channel, or ``none``.
        bias: whether each step gets a bias for each channel.
        sense: whether neurons with closed-loop thresholds keep silent where no logit depends on them, or a spike is not worth
            the rule's price. The network with analog neurons must be the ANN.

    Raises:
        ModelError: a neuron's input is not finite; the message names the neuron.
    """
    found = {name: n for name, n in neurons(network) if isinstance(n, CodedNeuron) and n.alphabet is not None}
    activity = _activity(network, batches, found, rule, sense)
    taken, priors = dict.fromkeys(found, timesteps), _priors(network, batches, activity, rule, prior)
    for name, neuron in found.items():
        seen = activity[name]
        neuron.prior = priors[name]
        neuron.ratio = neuron.silence = neuron.bias = seen.scale.new_empty(0)
    if not rule.closed_loop:
        _set_static_thresholds(network, batches, timesteps, rule, activity, found)
    synchronous, lags = (any(getattr(neuron, kind) for neuron in found.values()) for kind in ("synchronous", "lag"))
    if rule.closed_loop or bias:
        if _are_sensed(activity) and any(map(rule.is_scheduled, found.values())):
            taken = durations(network, batches, found, activity, stages(network, _size(batches)), timesteps)
        loops = {name: ClosedLoop(neuron, activity[name], rule, bias, taken[name]) for name, neuron in found.items()}
        with in_place_of_neurons(network, loops), torch.no_grad():
            for batch in batches:
                for loop in loops.values():
                    loop.aim = None
                simulate(network, batch, 1)
                if lags:
                    wave(network, batch.expand(timesteps, *batch.shape))
                else:
                    simulate(network, batch, 1 if synchronous else timesteps, chunk=1)
        for loop in loops.values():
            loop.finish()


def _activity(
    network: nn.Module, batches: Iterable[Tensor], found: dict[str, CodedNeuron], rule: ThresholdRule, sense: bool
) -> dict[str, Activity]:
    """What the neurons see, and, where the rule asks for it, what a spike of theirs is worth and what it costs."""
    sensitivity: dict[str, Tensor] = {}
    if sense and rule.closed_loop:
        weighs = rule.price or any(map(rule.is_scheduled, found.values()))
        images, draws = (PRICED_ON, PRICED_BY) if weighs else (SENSED_ON, SENSED_BY)
        sensitivity = sensitivities(network, batches, found, images, draws)
    reached = reach(network, _size(batches)) if sensitivity and rule.price else {}
    return observe(network, batches, found, sensitivity, reached)


def _priors(
    network: nn.Module, batches: Iterable[Tensor], activity: dict[str, Activity], rule: ThresholdRule, prior: Prior
) -> dict[str, Tensor]:
    if prior == "none":
        return {name: torch.zeros_like(seen.scale) for name, seen in activity.items()}
    if prior == "minimum":
        return {name: seen.minimum for name, seen in activity.items()}
    if rule.price and _are_sensed(activity):
        return resting(network, batches, activity, rule.price)
    return {name: seen.mean for name, seen in activity.items()}


def _are_sensed(activity: dict[str, Activity]) -> bool:
    """Whether it is known what the logits depend on."""
    return any(seen.sensitivity is not None for seen in activity.values())


def _size(batches: Iterable[Tensor]) -> tuple[int, ...]:
    """Of one image."""
    return tuple(next(iter(batches)).shape[1:])


def _set_static_thresholds(
    network: nn.Module,
    batches: Iterable[Tensor],
    timesteps: int,
    rule: ThresholdRule,
    activity: dict[str, Activity],
    found: dict[str, CodedNeuron],
) -> None:
    observers = {name: rule.watch(neuron, timesteps) for name, neuron in found.items()}

    def see(name: str, event: Event) -> None:
        show(observers[name], found[name], activity[name], 0, event.target)

    probes = {name: partial(see, name) for name in found}
    with probing(network, probes), analog(), torch.no_grad():
        for batch in batches:
            simulate(network, batch, 1)
    for name, neuron in found.items():
        levels = rule.levels(neuron, observers[name], activity[name])
        neuron.threshold, neuron.ratio, neuron.silence = (table.unsqueeze(0) for table in levels)
