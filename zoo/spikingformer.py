"""Spikingformer: Spikformer's attention on a membrane shortcut, so that no layer sees integers.

Zhou et al., "Spikingformer: Spike-driven Residual Learning for Transformer-based Spiking Neural Network", 2023 (arXiv
2304.11954).
"""

from __future__ import annotations

from typing import Any

from ..spiking import ConvBN, MembraneShortcut, NeuronFactory, SpikingMLP, SpikingPatchSplitting, SpikingSelfAttention
from .network import SpikingTransformer, Stage, block, neuron_factory
from .registry import Published, Variant, cifar, imagenet, register


class Spikingformer(SpikingTransformer):
    """Five convolutions, then blocks x + SSA(N(x)), x + MLP(N(x)). The stream is real-valued (membrane shortcut).

    Args:
        dim: channels.
        depth: blocks.
        num_heads: heads.
        mlp_ratio: hidden channels of the MLP to channels.
        pools: behind which of the first four neurons spikes are pooled: ``1111`` (stride 16) or ``0011`` (stride 4, CIFAR).
        scale: of the attention.
        timesteps: T.
        num_classes: outputs.
        in_chans: channels of the input.
        neuron: name in `vit2snn.spiking.NEURONS`, or a factory.

    Raises:
        ModelError: heads that do not divide the width, or an unknown neuron.
    """

    def __init__(
        self,
        dim: int = 384,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        pools: str = "1111",
        scale: float = 0.125,
        timesteps: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        neuron: str | NeuronFactory = "lif",
    ) -> None:
        make = neuron_factory(neuron)
        embed = patch_splitting(in_chans, dim, make, pools)
        blocks = [
            block(
                MembraneShortcut(SpikingSelfAttention(dim, num_heads, make, scale), make),
                MembraneShortcut(SpikingMLP(dim, int(dim * mlp_ratio), make), make),
            )
            for _ in range(depth)
        ]
        super().__init__([Stage(embed, blocks, dim, embed.stride)], num_classes, in_chans, timesteps)


def patch_splitting(in_chans: int, dim: int, neuron: NeuronFactory, pools: str) -> SpikingPatchSplitting:
    """The patch embedding that ends in the currents of a fifth convolution; SEMM uses it too."""
    return SpikingPatchSplitting(in_chans, dim, neuron, pools, ConvBN(dim, dim, 3))


PAPER = ("Spikingformer: Spike-driven Residual Learning for Transformer-based Spiking Neural Network", "2304.11954")
SOURCE = "Spikingformer paper"
CIFAR: dict[str, Any] = {"dim": 384, "depth": 4, "num_heads": 12, "pools": "0011"}


def _imagenet(dim: int, heads: int, top1: float, energy: float) -> Variant:
    arguments = {"dim": dim, "depth": 8, "num_heads": heads}
    return Variant(arguments, imagenet(), (Published("ImageNet-1k", top1, 4, SOURCE, energy=energy),))


register(
    Spikingformer,
    PAPER,
    {
        "spikingformer_8_384": _imagenet(384, 6, 72.45, 4.69),
        "spikingformer_8_512": _imagenet(512, 8, 74.79, 7.46),
        "spikingformer_8_768": _imagenet(768, 12, 75.85, 13.68),
        "spikingformer_4_384_cifar10": Variant(CIFAR, cifar(), (Published("CIFAR-10", 95.61, 4, SOURCE),)),
        "spikingformer_4_384_cifar100": Variant(CIFAR, cifar(100), (Published("CIFAR-100", 79.09, 4, SOURCE),)),
    },
)
