"""QKFormer: a hierarchy of stages with Q-K attention, linear in the number of tokens, and spiking self-attention last.

Zhou et al., "QKFormer: Hierarchical Spiking Transformer using Q-K Attention", NeurIPS 2024 (arXiv 2403.16552). Written from
the paper's equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import ModelError
from ..spiking import (
    LIF,
    SPEDS,
    NeuronFactory,
    Run,
    SEWShortcut,
    Widths,
)
from ..spiking.branches import find
from .network import SpikingTransformer, Stage, block, neuron_factory
from .registry import Published, Variant, cifar, dvs, imagenet, register


class Stem(NamedTuple):
    """The form of the patch embeddings for images of one size.

    Attributes:
        parts: of the first stage: its width is so many times that of each convolution.
        pools: which of them pool.
        before: how many come before the deformed shortcut.
        later: which of the two convolutions of a later stage pools.
    """

    parts: tuple[int, ...]
    pools: str
    before: int
    later: str


STEMS = {
    "imagenet": Stem((2, 1, 1), "110", 1, "10"),
    "cifar": Stem((2, 1), "00", 1, "01"),
    "dvs": Stem((8, 4, 2, 1), "0111", 2, "01"),
}
"""As in the published code for each kind of images."""


class BatchLeakLIF(LIF):
    """The last neuron of SSA as the published code runs it: over timesteps *and* images, one after another.

    The membrane that one image leaves behind is where the next one starts, so outputs depend on the batch. Only to replay
    published weights: see the README.
    """

    def advance(self, frames: Tensor, state: Any, run: Run) -> tuple[Tensor, Any]:
        """``[T, B, ...]`` as T * B timesteps of one image."""
        outputs, state = super().advance(frames.flatten(0, 1).unsqueeze(1), state, run)
        return outputs.reshape(frames.shape), state


class QKFormer(SpikingTransformer):
    """Each stage: SPEDS, then blocks x + N(attention(x)), x + N(MLP(x)). The stream holds small integers (SEW shortcut).

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        attention: of each stage: ``qk-token``, ``qk-channel``, ``qk-mixed`` or ``ssa``, or another kind in
            `vit2snn.spiking.branches`.
        num_heads: of all stages.
        mlp_ratio: hidden channels of the MLP to channels.
        stem: form of the first patch embedding: ``imagenet`` (stride 4), ``cifar`` (1) or ``dvs`` (8).
        timesteps: T.
        num_classes: outputs.
        in_chans: channels of the input.
        neuron: name in `vit2snn.spiking.NEURONS`, or a factory.
        batch_leak: run the last neuron of SSA as the published code does (`BatchLeakLIF`).

    Raises:
        ModelError: unknown attention or stem, lists of unequal length, heads that do not divide a width.
    """

    first_conv = "stages.0.embed.stem.0.project.conv"

    def __init__(
        self,
        dims: Sequence[int] = (96, 192, 384),
        depths: Sequence[int] = (1, 2, 7),
        attention: Sequence[str] = ("qk-token", "qk-token", "ssa"),
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        stem: str = "imagenet",
        timesteps: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        neuron: str | NeuronFactory = "lif",
        batch_leak: bool = False,
    ) -> None:
        if not len(dims) == len(depths) == len(attention):
            raise ModelError(f"dims={dims}, depths={depths} and attention={attention} must name the same stages")
        make = neuron_factory(neuron)
        stages = []
        for embed, dim, depth, kind in zip(patch_embeddings(in_chans, dims, make, stem), dims, depths, attention, strict=True):
            blocks = [_block(kind, dim, num_heads, mlp_ratio, make, batch_leak) for _ in range(depth)]
            stages.append(Stage(embed, blocks, dim, embed.stride))
        super().__init__(stages, num_classes, in_chans, timesteps)


def patch_embeddings(in_chans: int, dims: Sequence[int], neuron: NeuronFactory, stem: str) -> list[SPEDS]:
    """The patch embedding of each stage; `vit2snn.zoo.AutoST` uses them too."""
    first = _first(stem, in_chans, dims[0], neuron)
    return [first, *(_later(stem, *pair, neuron) for pair in pairwise(dims))]


def _first(stem: str, in_chans: int, dim: int, neuron: NeuronFactory) -> SPEDS:
    if stem not in STEMS:
        raise ModelError(f"there is no stem {stem!r}", f"choose one of {', '.join(STEMS)}")
    form = STEMS[stem]
    return SPEDS(in_chans, [dim // part for part in form.parts], form.pools, form.before, neuron)


def _later(stem: str, inputs: int, dim: int, neuron: NeuronFactory) -> SPEDS:
    return SPEDS(inputs, (dim, dim), STEMS[stem].later, 0, neuron)


def _block(kind: str, dim: int, num_heads: int, mlp_ratio: float, neuron: NeuronFactory, batch_leak: bool) -> nn.Module:
    widths = Widths(dim, num_heads, int(dim * mlp_ratio))
    leaks = batch_leak and kind == "ssa"
    return block(
        SEWShortcut(find("attention", kind).for_maps(widths, neuron), BatchLeakLIF if leaks else neuron),
        SEWShortcut(find("mlp", "spiking").for_maps(widths, neuron), neuron),
    )


PAPER = ("QKFormer: Hierarchical Spiking Transformer using Q-K Attention", "2403.16552")
SOURCE = "QKFormer paper, NeurIPS 2024"
LEAK = "measured by code in which images of a batch leak into each other (batch_leak)"
CIFAR: dict[str, Any] = {"depths": (1, 1, 2), "num_heads": 8, "stem": "cifar"}
DVS: dict[str, Any] = {
    "dims": (128, 256), "depths": (1, 1), "attention": ("qk-token", "ssa"), "num_heads": 16, "stem": "dvs", "timesteps": 16,
}  # fmt: skip

register(
    QKFormer,
    PAPER,
    {
        "qkformer_10_384": Variant(
            {"dims": (96, 192, 384), "num_heads": 6},
            imagenet(),
            (
                Published("ImageNet-1k", 78.80, 4, SOURCE, LEAK, 15.13),
                Published("ImageNet-1k", 74.20, 4, "issue 14 of the authors' repository", "published weights without the leak"),
            ),
        ),
        "qkformer_10_512": Variant(
            {"dims": (128, 256, 512), "num_heads": 8},
            imagenet(),
            (Published("ImageNet-1k", 82.04, 4, SOURCE, LEAK, 21.99),),
        ),
        "qkformer_10_768": Variant(
            {"dims": (192, 384, 768), "num_heads": 12},
            imagenet(),
            (
                Published("ImageNet-1k", 84.22, 4, SOURCE, LEAK, 38.91),
                Published("ImageNet-1k", 78.70, 4, "issue 14 of the authors' repository", "published weights without the leak"),
                Published("ImageNet-1k", 81.69, 1, SOURCE, LEAK, 8.52),
                Published("ImageNet-1k, 288 px", 85.25, 4, SOURCE, LEAK, 64.27),
                Published("ImageNet-1k, 384 px", 85.65, 4, SOURCE, LEAK, 113.64),
            ),
        ),
        "qkformer_4_384_cifar10": Variant(CIFAR, cifar(), (Published("CIFAR-10", 96.18, 4, SOURCE, LEAK),)),
        "qkformer_4_384_cifar100": Variant(CIFAR, cifar(100), (Published("CIFAR-100", 81.15, 4, SOURCE, LEAK),)),
        "qkformer_2_256_cifar10dvs": Variant(
            DVS | {"mlp_ratio": 1.0},
            dvs(),
            (Published("CIFAR10-DVS", 84.0, 16, SOURCE, LEAK), Published("CIFAR10-DVS", 83.8, 10, SOURCE, LEAK)),
        ),
        "qkformer_2_256_dvs128": Variant(
            DVS,
            dvs(classes=11),
            (
                Published("DVS128 Gesture", 98.6, 16, SOURCE, LEAK + "; the paper counts 1.50M parameters, its code has 2.00M"),
                Published("DVS128 Gesture", 98.3, 10, SOURCE, LEAK),
            ),
        ),
    },
)
