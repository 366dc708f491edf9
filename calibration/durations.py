"""How many timesteps each layer of a layer-synchronous network takes.

Layers that wait for each other need not all take T timesteps: the same latency is D T for D layers in a row, however it is
divided. What the logits lack is about the sum of what each neuron's rounding adds to it (`sensitivities`), which falls by a
factor with each timestep; so the next timestep goes where it takes away most (a greedy choice, which is the best one where
errors fall convexly). On DeiT the image and the outputs of softmax get more than T.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, Event, analog, probing, simulate
from ..spiking.shards import total
from .activity import Activity
from .channels import to_channels
from .code import Code
from .observers import MseObserver
from .rule import FALLS, threshold_axes

TRIED = FALLS[1::3]
"""Shares by which thresholds may fall: fewer than are searched later, as only the error that is left matters."""

FEWER, MORE, FEWEST = 1, 2, 2
"""Timesteps that a layer may take beside T, below and above, and the fewest that one takes which could have more."""


class Noise:
    """What a neuron adds to the relative squared error of the logits, by the number of its timesteps.

    Channels of one neuron are taken to be alike but for their scale: one histogram holds them all.

    Args:
        neuron: calibrated as far as its prior.
        seen: its activity, with its sensitivity.
        choices: numbers of timesteps.
    """

    def __init__(self, neuron: CodedNeuron, seen: Activity, choices: range) -> None:
        self.neuron, self.seen = neuron, seen
        code = Code.of(neuron, 1)
        self.observers = [MseObserver(replace(code, timesteps=timesteps)) for timesteps in choices]
        for other in self.observers[1:]:
            other.histogram = self.observers[0].histogram
        self.power, self.images = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)

    def __call__(self, event: Event) -> None:
        """Take in one batch of the ANN's activations."""
        neuron, seen = self.neuron, self.seen
        axes = threshold_axes(neuron, seen)
        assert neuron.alphabet is not None and seen.sensitivity is not None
        columns = neuron.alphabet.magnitudes(seen.columns(event.target - neuron.prior, axes))
        squares = columns.square().mean(1)
        worth = to_channels(seen.sensitivity.unsqueeze(0), axes).sum(1)
        self.power = self.power + (squares * worth).sum(dtype=torch.float64) * len(event.target)
        self.images += len(event.target)
        scale = squares.sqrt().clamp_min(torch.finfo(columns.dtype).tiny)
        self.observers[0].update((columns / scale.unsqueeze(1)).reshape(1, -1))

    def errors(self) -> Tensor:
        """For each choice, over all processes, ``[choices]``."""
        samples = total(self.observers[0].histogram.counts).sum().clamp(min=1)
        power = total(self.power) / total(self.images).clamp(min=1)
        return power * torch.cat([observer.least_error(TRIED) for observer in self.observers]) / samples


def durations(
    network: nn.Module,
    batches: Iterable[Tensor],
    found: Mapping[str, CodedNeuron],
    activity: Mapping[str, Activity],
    stages: Sequence[Sequence[str]],
    timesteps: int,
) -> dict[str, int]:
    """The timesteps of each neuron, of which those of all ``stages`` together are ``timesteps`` times their number.

    Args:
        network: its neurons are calibrated as far as their priors.
        batches: images, in each process of a group.
        found: its neurons, by name.
        activity: of each, with its sensitivity.
        stages: the names of the neurons at each place of the longest way to the logits (see `vit2snn.tracing.depth`).
        timesteps: T.
    """
    choices = range(min(timesteps, max(FEWEST, timesteps - FEWER)), timesteps + MORE + 1)
    if choices.start == timesteps:  # nobody can do with fewer
        return dict.fromkeys(found, timesteps)
    noises = {name: Noise(found[name], seen, choices) for name, seen in activity.items() if seen.sensitivity is not None}
    with probing(network, noises), analog(), torch.no_grad():
        for batch in batches:
            simulate(network, batch, 1)
    table = torch.stack([noise.errors() for noise in noises.values()]).tolist()  # at once: a device is waited for
    errors = dict(zip(noises, table, strict=True))
    rows = [[sum(each) for each in zip(*(errors[name] for name in stage if name in errors), strict=True)] for stage in stages]
    taken = shared_out(rows, choices, timesteps * len(rows))
    by_stage = {name: steps for stage, steps in zip(stages, taken, strict=True) for name in stage}
    return {name: by_stage.get(name, timesteps) for name in found}


def shared_out(errors: Sequence[Sequence[float]], choices: range, budget: int) -> list[int]:
    """One of ``choices`` for each row of ``errors`` (one for each choice), of ``budget`` in all, with the least error.

    A row without errors gets what all have in the mean.
    """
    taken = [0 if row else budget // len(errors) - choices.start for row in errors]
    last = len(choices) - 1
    while len(errors) * choices.start + sum(taken) < budget:
        gains = [row[now] - row[now + 1] if row and now < last else -1.0 for row, now in zip(errors, taken, strict=True)]
        taken[max(range(len(gains)), key=gains.__getitem__)] += 1
    return [choices.start + now for now in taken]
