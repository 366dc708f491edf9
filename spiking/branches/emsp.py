"""EMSP: the expert-mixture perceptron of SEMM (see `vit2snn.spiking.branches.emsa`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..membrane import NeuronFactory
from ..projection import ConvBN, SpikingProjection
from ..tokens import GridConv2d
from .base import BlockSize, Branch, Inherited, Own, Part, Widths
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
    def for_tokens(cls, size: BlockSize, neuron: NeuronFactory) -> ExpertMixturePerceptron:
        """The block's hidden channels are those that are gated, by what lies around a patch on the grid."""
        made = cls(size.channels, 2 * size.hidden, neuron)
        router = GridConv2d(size.hidden, 3, size.grid, size.prefix, groups=size.hidden)
        with torch.no_grad():
            router.weight.zero_()[:, :, 1, 1] = 1  # at first each channel is gated by itself alone
        made.router.project.conv = router
        return made

    @classmethod
    def count(cls, size: BlockSize) -> Counts:
        """Two layers, and the depthwise convolution of one half."""
        half, tokens = size.hidden // 2, size.tokens
        expand = projection(size.channels, 2 * half, tokens, bias=True)
        router = projection(half, half, tokens, kernel=3, groups=half)
        return expand + router + convolution(half, size.channels, tokens, bias=True)

    @classmethod
    def inherited(cls, own: Own, heads: int) -> dict[str, Inherited]:
        """Both halves read what the ANN's activation function makes of its first layer."""
        expand = own["expand"]
        return {**own, "expand": Inherited(expand.weight.repeat(2, 1), expand.bias.repeat(2), expand.reads)}

    def parts(self) -> list[Part]:
        """Both halves, the gate of one, output."""
        return [Part("expand", "projection"), Part("router", "gate"), Part("reduce", "output")]

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to currents of the same shape."""
        routed, experts = self.expand(x).chunk(2, 1)
        currents: Tensor = self.reduce(self.router(routed) * experts)
        return currents
