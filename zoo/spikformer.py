"""Spikformer: four convolutions, then blocks of spiking self-attention and perceptrons on one resolution.

Zhou et al., "Spikformer: When Spiking Neural Network Meets Transformer", ICLR 2023 (arXiv 2209.15425).
"""

from __future__ import annotations

from typing import Any

from ..spiking import ConvBN, NeuronFactory, SEWShortcut, SpikingMLP, SpikingPatchSplitting, SpikingSelfAttention
from .network import SpikingTransformer, Stage, block, neuron_factory
from .registry import Published, Variant, cifar, dvs, imagenet, register


class Spikformer(SpikingTransformer):
    """SPS, then blocks x + N(SSA(x)), x + N(MLP(x)). The stream holds small integers (SEW shortcut).

    Args:
        dim: channels.
        depth: blocks.
        num_heads: heads.
        mlp_ratio: hidden channels of the MLP to channels.
        pools: which of the four convolutions pool: ``1111`` (stride 16) or ``0011`` (stride 4, CIFAR).
        scale: of the attention; the published code has 0.125, and 0.25 for event data.
        qkv_bias: biases before the batch normalisation of q, k and v; the published CIFAR code has them.
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
        qkv_bias: bool = False,
        timesteps: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        neuron: str | NeuronFactory = "lif",
    ) -> None:
        make = neuron_factory(neuron)
        embed = patch_splitting(in_chans, dim, make, pools)
        blocks = [
            block(
                SEWShortcut(SpikingSelfAttention(dim, num_heads, make, scale, bias=qkv_bias), make),
                SEWShortcut(SpikingMLP(dim, int(dim * mlp_ratio), make), make),
            )
            for _ in range(depth)
        ]
        super().__init__([Stage(embed, blocks, dim, embed.stride)], num_classes, in_chans, timesteps)


def patch_splitting(in_chans: int, dim: int, neuron: NeuronFactory, pools: str) -> SpikingPatchSplitting:
    """Spikformer's patch embedding; SEMM and TIM use it too."""
    return SpikingPatchSplitting(in_chans, dim, neuron, pools, SEWShortcut(ConvBN(dim, dim, 3), neuron))


PAPER = ("Spikformer: When Spiking Neural Network Meets Transformer", "2209.15425")
SOURCE = "Spikformer paper, ICLR 2023"
RECOUNT = "energy is 12.43 mJ by the count of Spikingformer's authors"
CIFAR: dict[str, Any] = {"num_heads": 12, "pools": "0011", "qkv_bias": True}
CIFAR_4_256 = CIFAR | {"dim": 256, "depth": 4, "num_heads": 8}
CIFAR_2_384 = CIFAR | {"dim": 384, "depth": 2}
CIFAR_4_384 = CIFAR | {"dim": 384, "depth": 4}
DVS: dict[str, Any] = {"dim": 256, "depth": 2, "num_heads": 16, "scale": 0.25, "timesteps": 16}


def _imagenet(dim: int, depth: int, heads: int, top1: float, energy: float, caveat: str = "") -> Variant:
    arguments = {"dim": dim, "depth": depth, "num_heads": heads}
    return Variant(arguments, imagenet(), (Published("ImageNet-1k", top1, 4, SOURCE, caveat, energy),))


register(
    Spikformer,
    PAPER,
    {
        "spikformer_8_384": _imagenet(384, 8, 6, 70.24, 7.73, RECOUNT),
        "spikformer_6_512": _imagenet(512, 6, 8, 72.46, 9.42),
        "spikformer_8_512": _imagenet(512, 8, 8, 73.38, 11.58),
        "spikformer_10_512": _imagenet(512, 10, 8, 73.68, 13.90),
        "spikformer_8_768": _imagenet(768, 8, 12, 74.81, 21.48),
        "spikformer_4_256_cifar10": Variant(CIFAR_4_256, cifar(), (Published("CIFAR-10", 93.94, 4, SOURCE),)),
        "spikformer_2_384_cifar10": Variant(CIFAR_2_384, cifar(), (Published("CIFAR-10", 94.80, 4, SOURCE),)),
        "spikformer_4_384_cifar10": Variant(
            CIFAR_4_384,
            cifar(),
            (
                Published("CIFAR-10", 95.19, 4, SOURCE),
                Published("CIFAR-10", 95.51, 4, SOURCE, "400 epochs"),
                Published("CIFAR-10", 95.12, 4, "STEP benchmark, NeurIPS 2025", "independent run, 400 epochs"),
            ),
        ),
        "spikformer_4_256_cifar100": Variant(CIFAR_4_256, cifar(100), (Published("CIFAR-100", 75.96, 4, SOURCE),)),
        "spikformer_2_384_cifar100": Variant(CIFAR_2_384, cifar(100), (Published("CIFAR-100", 76.95, 4, SOURCE),)),
        "spikformer_4_384_cifar100": Variant(
            CIFAR_4_384,
            cifar(100),
            (
                Published("CIFAR-100", 77.86, 4, SOURCE),
                Published("CIFAR-100", 78.21, 4, SOURCE, "400 epochs"),
                Published("CIFAR-100", 77.37, 4, "STEP benchmark, NeurIPS 2025", "independent run, 400 epochs"),
            ),
        ),
        "spikformer_2_256_cifar10dvs": Variant(
            DVS, dvs(), (Published("CIFAR10-DVS", 80.9, 16, SOURCE), Published("CIFAR10-DVS", 78.9, 10, SOURCE))
        ),
        "spikformer_2_256_dvs128": Variant(
            DVS, dvs(classes=11), (Published("DVS128 Gesture", 98.3, 16, SOURCE), Published("DVS128 Gesture", 96.9, 10, SOURCE))
        ),
    },
)
