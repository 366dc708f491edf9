"""The model of AutoST's search space: Spikformer on a membrane shortcut, with learned leaks, free in width and block by block.

Wang et al., "AutoST: Training-free Neural Architecture Search for Spiking Transformers", ICASSP 2024 (arXiv 2307.00293).
Written from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ModelError
from ..spiking import ConvBN, MembraneShortcut, NeuronFactory, SpikingMLP, SpikingPatchSplitting, SpikingSelfAttention
from .network import SpikingTransformer, Stage, block, neuron_factory
from .registry import Variant, cifar, register


class Residual(nn.Module):
    """x + BN(Conv3x3(x)) on currents: AutoST's position embedding has no neuron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.branch = ConvBN(dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to the same shape."""
        added: Tensor = x + self.branch(x)
        return added


class AutoST(SpikingTransformer):
    """SPS without its last neuron, then blocks x + SSA(N(x)), x + MLP(N(x)), each of its own heads and MLP ratio.

    Args:
        dim: channels.
        num_heads: heads of each block; as many as there are blocks.
        mlp_ratios: hidden channels to channels of each block's MLP.
        pools: which of the four convolutions pool.
        timesteps: T.
        num_classes: outputs.
        in_chans: channels of the input.
        neuron: name in `vit2snn.spiking.NEURONS`, or a factory.

    Raises:
        ModelError: lists of unequal length, heads that do not divide the width, or an unknown neuron.
    """

    def __init__(
        self,
        dim: int = 384,
        num_heads: Sequence[int] = (8, 8, 8, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        pools: str = "0011",
        timesteps: int = 4,
        num_classes: int = 100,
        in_chans: int = 3,
        neuron: str | NeuronFactory = "plif",
    ) -> None:
        if len(num_heads) != len(mlp_ratios):
            raise ModelError(f"num_heads={num_heads} and mlp_ratios={mlp_ratios} must name the same blocks")
        make = neuron_factory(neuron)
        embed = SpikingPatchSplitting(in_chans, dim, make, pools, Residual(dim), last_neuron=False)
        blocks = [
            block(
                MembraneShortcut(SpikingSelfAttention(dim, heads, make, bias=True), make),
                MembraneShortcut(SpikingMLP(dim, int(dim * ratio), make), make),
            )
            for heads, ratio in zip(num_heads, mlp_ratios, strict=True)
        ]
        super().__init__([Stage(embed, blocks, dim, embed.stride)], num_classes, in_chans, timesteps)


register(
    AutoST,
    ("AutoST: Training-free Neural Architecture Search for Spiking Transformers", "2307.00293"),
    {"autost_4_384_cifar100": Variant({}, cifar(100))},
)
