"""Membrane neurons in fitted substitutes: balanced, and then each branch is trained again through its spikes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..calibration import NormalEquations, balance
from ..data import seed_of
from ..finetune import train
from ..spiking import Balanced, SpikingLinear, analog, over_time, shards
from .fit_branches import BATCH, CHUNK, RIDGE, STARTED_ON, Effort, Place, Streams, agree, places, settings
from .inputs import OwnItems
from .substitution import is_new_parameter

HELD = 4096
"""Timesteps, of all images, whose streams are held in memory."""
RATE = 2e-2
INHERITED, BALANCED, HEAD = 0.3, 0.5, 0.03
"""What starts from fitted weights, the tables of neurons, and the head learn at these fractions of the rate."""


@torch.no_grad()
def fit_spikes(network: VisionTransformer, ann: VisionTransformer, images: Tensor, timesteps: int, effort: Effort) -> None:
    """Balance the membrane neurons of ``network``, front to back, and train its branches through them, in place.

    A branch is fitted to what the mean over time of its own network's stream still lacks to the ANN's, and the head to the
    ANN's logits. Coded neurons pass their inputs through meanwhile.

    Args:
        network: with membrane neurons in substitutes that have been fitted, in evaluation mode.
        ann: what it was made of, in evaluation mode.
        images: ``[B, C, H, W]``; of `HELD` / T or fewer.
        timesteps: T.
        effort: see `Effort`.
    """
    streams, count = Streams(ann, images, timesteps), 0
    with analog():
        for place in places(network, ann):
            streams.pass_theirs(place)
            count += place.is_new
            if place.is_new and count > effort.done:
                lacking = streams.theirs - streams.ours.mean(0)
                weights = place.weights(lacking)
                _fit(_Branch(place), streams.ours, lacking, weights, place.name, INHERITED, effort, count)
                effort.fitted(count)
                del lacking  # as large as a stream
            streams.pass_ours(place)
        count += 1
        if isinstance(network.head, SpikingLinear) and isinstance(network.head.neuron, Balanced) and count > effort.done:
            logits = ann.forward_head(ann.norm(streams.theirs))
            _fit(_Readout(network), streams.ours, logits, logits.new_ones(1), "head", HEAD, effort, count)
            effort.fitted(count)


class _Branch(nn.Module):
    """A branch: the stream ``[B, N, C]`` to what is added to it."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.norm, self.branch, self.scale = place.ours

    @property
    def last(self) -> nn.Linear:
        """Its last map."""
        branch: Any = self.branch
        last: nn.Linear = branch.last
        return last

    def mixed(self, x: Tensor) -> Tensor:
        """What that one reads, before a neuron of its own."""
        branch: Any = self.branch
        mixed: Tensor = branch.mixed(self.norm(x))
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.scale(self.branch(self.norm(x)))
        return added


class _Readout(nn.Module):
    """What is behind the last block: tokens ``[B, N, C]`` to logits."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.norm, self.fc_norm, self.head = network.norm, network.fc_norm, network.head
        self._whole = (network,)  # not all of it is trained

    @property
    def last(self) -> nn.Linear:
        """The head."""
        head: Any = self.head
        last: nn.Linear = head
        return last

    def mixed(self, x: Tensor) -> Tensor:
        """What it reads, before a neuron of its own."""
        (network,) = self._whole
        features: Tensor = network.forward_head(network.norm(x), pre_logits=True)
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mixed(x))
        return logits


class _OverTime(nn.Module):
    """The mean over time of what a part of a network makes of its input: ``[B, T, ...]`` to ``[B, ...]``."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return over_time(self.part, x.transpose(0, 1)).mean(0)


class _Decoded(nn.Module):
    """gain ⊙ (s + level): spikes as the values that they stand for, channel by channel, for a linear layer to read.

    While both learn, weights keep the scale of the ANN's; afterwards this goes into them.
    """

    def __init__(self, balanced: Balanced, layer: nn.Linear) -> None:
        super().__init__()
        self.balanced = balanced
        like = balanced.height
        self.gain = nn.Parameter(torch.ones_like(like))
        self.level = nn.Parameter(torch.zeros_like(like), requires_grad=layer.bias is not None)  # without bias there is none

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = (self.balanced(x) + self.level) * self.gain
        return values

    def read(self, rate: Tensor, target: Tensor) -> None:
        """Gain and level by least squares, for firing rates and what they stand for, ``[samples, C]`` both."""
        self.balanced.height.data.fill_(1.0)
        mean, middle = (x.mean(0) if self.level.requires_grad else torch.zeros_like(x[0]) for x in (rate, target))
        variance = (rate - mean).square().mean(0)
        gain = ((rate - mean) * (target - middle)).mean(0) / variance.clamp(min=1e-6)
        gain = torch.where(gain.abs() > 1e-3 * gain.abs().mean(), gain, gain.abs().mean().clamp(min=1e-6))
        self.gain.data = gain.to(self.gain)
        self.level.data = (middle / gain - mean).to(self.level)

    def put_into(self, layer: nn.Linear) -> None:
        """Let weights and bias do the same."""
        if layer.bias is not None:
            layer.bias.add_(layer.weight @ (self.gain * self.level))
        layer.weight.mul_(self.gain * self.balanced.height)
        self.balanced.height.fill_(1.0)


@contextmanager
def _decoded(part: nn.Module) -> Iterator[dict[Balanced, _Decoded]]:
    """Within this context the neurons of linear layers give values, and not spikes, whose scale is then the weights'."""
    layers: list[Any] = [m for m in part.modules() if isinstance(m, SpikingLinear) and isinstance(m.neuron, Balanced)]
    for layer in layers:
        layer.neuron = _Decoded(layer.neuron, layer)
    yield {layer.neuron.balanced: layer.neuron for layer in layers}
    for layer in layers:
        layer.neuron.put_into(layer)
        layer.neuron = layer.neuron.balanced


def _fit(
    part: _Branch | _Readout,
    given: Tensor,
    wanted: Tensor,
    weights: Tensor,
    name: str,
    inherited: float,
    effort: Effort,
    count: int,
) -> None:
    """Fit one part to give ``wanted`` ``[B, ...]`` in the mean over time of ``given`` ``[T, B, ...]``."""
    torch.manual_seed(seed_of("spikes", effort.seed, count))  # the same if a fit is resumed here
    with _decoded(part) as decoded:
        _balance(part, given[:, :STARTED_ON], decoded)
        agree(part)
        if effort.refit == "ridge":
            _regress(part, given, wanted, weights)
            agree(part)
        elif effort.refit != "none":
            _train(_OverTime(part), given.transpose(0, 1), wanted, weights, name, inherited, effort)


def _balance(part: nn.Module, given: Tensor, decoded: dict[Balanced, _Decoded]) -> None:
    """Balance the neurons of a part in the order in which signals pass them."""

    def first(balanced: Any, inputs: tuple[Tensor]) -> None:
        figures = balance(balanced, inputs[0].unflatten(0, (len(given), -1)))
        if balanced in decoded:
            decoded[balanced].read(*figures)

    handles = [m.register_forward_pre_hook(first) for m in part.modules() if isinstance(m, Balanced)]
    over_time(part, given)
    for handle in handles:
        handle.remove()


def _regress(part: _Branch | _Readout, given: Tensor, wanted: Tensor, weights: Tensor) -> None:
    """Ridge regression of the last map on the mean over time of the spikes that it really reads."""
    last, equations, some = part.last, NormalEquations(), max(CHUNK // len(given), 1)
    neuron = getattr(last, "neuron", nn.Identity())
    for x, y in zip(given.split(some, 1), wanted.split(some), strict=True):
        read = over_time(lambda frames: neuron(part.mixed(frames)), x).mean(0)
        lacks = y - nn.functional.linear(read, last.weight, last.bias)
        equations.update(read.flatten(0, -2), lacks.flatten(0, -2), weights.expand(*lacks.shape[:-1], 1).flatten())
    change, shift = equations.solve(RIDGE)
    last.weight.add_(change.to(last.weight))
    if last.bias is not None:
        last.bias.add_(shift.to(last.bias))


@torch.enable_grad()
def _train(
    part: _OverTime, given: Tensor, wanted: Tensor, weights: Tensor, name: str, inherited: float, effort: Effort
) -> None:
    """Gradient descent on the squared error, relative to the variance of what is wanted."""
    batches = OwnItems(lambda index: (given[index], wanted[index]), len(given), BATCH, effort.seed)
    variance = shards.total(wanted.var()) / shards.processes()

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"lacking": ((model(x) - y).square() * weights).mean() / variance}

    def scale(parameter: str) -> float:
        owner = part.get_submodule(parameter.rpartition(".")[0])
        if isinstance(owner, (Balanced, _Decoded)):
            return BALANCED
        return 1.0 if is_new_parameter(part, parameter) else inherited

    train(
        part, batches, settings(RATE, effort.steps, len(batches), effort.seed, effort.precision), objective=objective,
        lr_scale=scale, report=lambda step: effort.report(name, step),
    )  # fmt: skip
