"""The built-in conversion rules. Modules that are no layers need none: see `vit2snn.convert.products`."""

from __future__ import annotations

from torch import nn

from ..spiking import SpikingConv2d, SpikingLinear, driven
from .registry import NeuronFactory, converts


@converts(nn.Linear)
def linear(module: nn.Linear, neuron: NeuronFactory) -> SpikingLinear:
    """Channels are the last axis."""
    return driven(SpikingLinear, module, neuron((-1,)))


@converts(nn.Conv2d)
def conv2d(module: nn.Conv2d, neuron: NeuronFactory) -> SpikingConv2d:
    """Channels are the first axis of an image."""
    return driven(SpikingConv2d, module, neuron((-3,)))
