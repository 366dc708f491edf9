"""EMSP: the expert-mixture perceptron of SEMM (see `vit2snn.spiking.branches.emsa`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..membrane import NeuronFactory
from ..projection import ConvBN, SpikingProjection
from .base import BlockSize, Branch, Widths
from .count import Counts, convolution, projection
from .registry import branch


@branch("mlp", "emsp")
class ExpertMixturePerceptron(Branch):
    """EMSP: one half of the hidden channels, after a depthwise convolution, gates the other half, channel by channel.

    h, h' = N(BN(W1 x)) in two halves;  out = BN(W2 (N(BN(DWConv3x3 h)) ⊙ h')). Input spikes or integers ``[T * B, C, H, W]``;
    the gated half is **binary**; the output are currents, real-valued, for the neuron of a shortcut.

    Args:
        dim: channels C.
        hidden: hidden channels, both halves together.
        neuron: makes all neurons.
    """

    def __init__(self, dim: int, hidden: int, neuron: NeuronFactory) -> None:
        super().__init__()
        half = hidden // 2
        self.expand = SpikingProjection(dim, 2 * half, neuron, bias=True)
        self.router = SpikingProjection(half, half, neuron, kernel=3, groups=half)
        self.reduce = ConvBN(half, dim, bias=True)

    @classmethod
    def for_maps(cls, widths: Widths, neuron: NeuronFactory, **options: Any) -> ExpertMixturePerceptron:
        """The block's hidden channels are those of both halves."""
        return cls(widths.channels, widths.hidden, neuron, **options)

    @classmethod
    def count(cls, size: BlockSize) -> Counts:
        """Two layers, and the depthwise convolution of one half."""
        half, tokens = size.hidden // 2, size.tokens
        expand = projection(size.channels, 2 * half, tokens, bias=True)
        router = projection(half, half, tokens, kernel=3, groups=half)
        return expand + router + convolution(half, size.channels, tokens, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to currents of the same shape."""
        routed, experts = self.expand(x).chunk(2, 1)
        currents: Tensor = self.reduce(self.router(routed) * experts)
        return currents
