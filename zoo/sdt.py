"""Spike-driven Transformer: masks and additions only, on a membrane shortcut.

Yao et al., "Spike-driven Transformer", NeurIPS 2023 (arXiv 2307.01694).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..spiking import (
    ConvBN,
    MembraneShortcut,
    NeuronFactory,
    SpikeDrivenSelfAttention,
    SpikingMLP,
    SpikingPatchSplitting,
)
from .network import SpikingTransformer, Stage, block, neuron_factory
from .registry import Published, Variant, cifar, dvs, imagenet, register


class SpikeDrivenTransformer(SpikingTransformer):
    """SPS without its last neuron, then blocks x + SDSA(N(x)), x + MLP(N(x)), and a neuron before the head.

    The stream is real-valued (membrane shortcut); every layer is fed by binary spikes.

    Args:
        dim: channels.
        depth: blocks.
        num_heads: heads; they matter only with ``pooled_attention``.
        mlp_ratio: hidden channels of the MLP to channels. At 1 the published MLP has a shortcut around each of its layers.
        pools: which of the four convolutions pool: ``1111`` (ImageNet), ``0011`` (CIFAR), ``0111`` (gestures).
        pooled_attention: the published variant of the attention for event data (`SpikeDrivenSelfAttention`).
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
        pooled_attention: bool = False,
        timesteps: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        neuron: str | NeuronFactory = "lif",
    ) -> None:
        make = neuron_factory(neuron)
        embed = patch_splitting(in_chans, dim, make, pools)
        blocks = [
            block(
                MembraneShortcut(SpikeDrivenSelfAttention(dim, num_heads, make, pooled=pooled_attention), make),
                _mlp(dim, int(dim * mlp_ratio), make),
            )
            for _ in range(depth)
        ]
        super().__init__([Stage(embed, blocks, dim, embed.stride)], num_classes, in_chans, timesteps, head_neuron=make())


def patch_splitting(in_chans: int, dim: int, neuron: NeuronFactory, pools: str) -> SpikingPatchSplitting:
    """The patch embedding whose output are membranes; SEMM uses it too."""
    position = MembraneShortcut(ConvBN(dim, dim, 3), neuron)
    return SpikingPatchSplitting(in_chans, dim, neuron, pools, position, last_neuron=False)


def _mlp(dim: int, hidden: int, neuron: NeuronFactory) -> nn.Module:
    if hidden == dim:
        return nn.Sequential(*(MembraneShortcut(ConvBN(dim, dim, bias=True), neuron) for _ in range(2)))
    return MembraneShortcut(SpikingMLP(dim, hidden, neuron), neuron)


PAPER = ("Spike-driven Transformer", "2307.01694")
SOURCE = "Spike-driven Transformer paper, NeurIPS 2023"
DVS: dict[str, Any] = {"dim": 256, "depth": 2}


def _imagenet(dim: int, depth: int, top1: float, energy: float, caveat: str = "") -> Variant:
    return Variant({"dim": dim, "depth": depth}, imagenet(), (Published("ImageNet-1k", top1, 4, SOURCE, caveat, energy),))


def _cifar(classes: int, top1: float) -> Variant:
    arguments = {"dim": 512, "depth": 2, "pools": "0011"}
    return Variant(arguments, cifar(classes), (Published(f"CIFAR-{classes}", top1, 4, SOURCE),))


register(
    SpikeDrivenTransformer,
    PAPER,
    {
        "sdt_8_384": _imagenet(384, 8, 72.28, 3.90),
        "sdt_6_512": _imagenet(512, 6, 74.11, 3.56),
        "sdt_8_512": _imagenet(512, 8, 74.57, 4.50),
        "sdt_10_512": _imagenet(512, 10, 74.66, 5.53),
        "sdt_8_768": _imagenet(768, 8, 77.07, 6.09, "scored at 288 px"),
        "sdt_2_512_cifar10": _cifar(10, 95.6),
        "sdt_2_512_cifar100": _cifar(100, 78.4),
        "sdt_2_256_cifar10dvs": Variant(DVS | {"pools": "0011", "timesteps": 10, "pooled_attention": True}, dvs(64)),
        "sdt_2_256_dvs128": Variant(DVS | {"pools": "0111", "timesteps": 16}, dvs(classes=11)),
    },
)
