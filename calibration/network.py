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

from ..spiking import Clock, CodedNeuron, Event, analog, neurons, probing, simulate
from .activity import Activity, observe
from .closed_loop import ClosedLoop, in_place_of_neurons
from .observers import Observer
from .rule import ThresholdRule, magnitudes

Prior = Literal["none", "mean", "minimum"]


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
        batches: images ``[B, C, H, W]``; iterated two or three times. All processes of a group have equally many.
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
        loops = {name: ClosedLoop(neuron, activity[name], rule, bias) for name, neuron in found.items()}
        with in_place_of_neurons(network, loops), torch.no_grad():
            for batch in batches:
                for loop in loops.values():
                    loop.aim = None
                simulate(network, clock, batch, 1)
                simulate(network, clock, batch, timesteps, chunk=1)
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
    observers = {name: rule.watch(neuron, timesteps) for name, neuron in found.items()}

    def see(neuron: CodedNeuron, observer: Observer, event: Event) -> None:
        observer.update(magnitudes(neuron, event.target - neuron.prior))

    probes = {name: partial(see, neuron, observers[name]) for name, neuron in found.items()}
    with probing(network, probes), analog(network), torch.no_grad():
        for batch in batches:
            simulate(network, clock, batch, 1)
    for name, neuron in found.items():
        neuron.threshold = rule.threshold(neuron, observers[name], activity[name]).unsqueeze(0)
