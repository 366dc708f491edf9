"""The perceptron of spiking transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..membrane import NeuronFactory
from ..projection import ConvBN, SpikingProjection
from .base import BlockSize, Branch, Widths
from .count import Counts, convolution, projection
from .registry import branch


@branch("mlp", "spiking")
class SpikingMLP(Branch):
    """BN(W2 N(BN(W1 x))): spikes or integers ``[T * B, C, H, W]`` to currents of the same shape, real-valued.

    A branch of a shortcut, whose neuron makes binary spikes of the currents. Zhou et al., "Spikformer", ICLR 2023.

    Args:
        dim: channels C.
        hidden: channels between the two layers.
        neuron: makes N.
    """

    def __init__(self, dim: int, hidden: int, neuron: NeuronFactory) -> None:
        super().__init__()
        self.expand = SpikingProjection(dim, hidden, neuron, bias=True)
        self.reduce = ConvBN(hidden, dim, bias=True)

    @classmethod
    def for_maps(cls, widths: Widths, neuron: NeuronFactory, **options: Any) -> SpikingMLP:
        """Of the block's channels and hidden channels."""
        return cls(widths.channels, widths.hidden, neuron, **options)

    @classmethod
    def count(cls, size: BlockSize) -> Counts:
        """Two layers, and neurons between them."""
        expand = projection(size.channels, size.hidden, size.tokens, bias=True)
        return expand + convolution(size.hidden, size.channels, size.tokens, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to currents of the same shape."""
        currents: Tensor = self.reduce(self.expand(x))
        return currents
