"""Spikformer for event data with temporal interaction (TIM) on the query.

Shen et al., "TIM: An Efficient Temporal Interaction Module for Spiking Transformer", IJCAI 2024 (arXiv 2401.11687).
"""

from __future__ import annotations

from typing import Any

from timm.layers import to_2tuple

from ..errors import ModelError
from ..spiking import NeuronFactory, SEWShortcut, SpikingMLP, SpikingSelfAttention, TemporalInteraction
from .network import SpikingTransformer, Stage, block, neuron_factory
from .registry import Published, Variant, dvs, register
from .spikformer import patch_splitting


class TIMSpikformer(SpikingTransformer):
    """Spikformer whose queries also depend on those of the timestep before (`vit2snn.spiking.TemporalInteraction`).

    Args:
        dim: channels.
        depth: blocks.
        num_heads: heads.
        mlp_ratio: hidden channels of the MLP to channels.
        img_size: height and width of the frames, or one number for both; the interaction has the tokens as its
            channels, so they are fixed.
        alpha: weight of the timestep before.
        interaction_thresholds: of the two neurons of the interaction.
        attention_threshold: of the neuron behind the attention.
        scale: of the attention.
        timesteps: T.
        num_classes: outputs.
        in_chans: channels of the input.
        neuron: name in `vit2snn.spiking.NEURONS`, or a factory.

    Raises:
        ModelError: an image size that 16 does not divide, heads that do not divide the width, or an unknown neuron.
    """

    def __init__(
        self,
        dim: int = 256,
        depth: int = 2,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        img_size: int | tuple[int, int] = 64,
        alpha: float = 0.5,
        interaction_thresholds: tuple[float, float] = (0.3, 0.5),
        attention_threshold: float = 0.5,
        scale: float = 0.25,
        timesteps: int = 10,
        num_classes: int = 10,
        in_chans: int = 2,
        neuron: str | NeuronFactory = "lif",
    ) -> None:
        make = neuron_factory(neuron)
        embed = patch_splitting(in_chans, dim, make, "1111")
        height, width = to_2tuple(img_size)
        if height % embed.stride or width % embed.stride:
            raise ModelError(f"frames of {height}x{width} are not divisible by the model's stride of {embed.stride}")
        tokens = height // embed.stride * (width // embed.stride)

        def attention() -> SpikingSelfAttention:
            interaction = TemporalInteraction(tokens, alpha, interaction_thresholds)
            made = SpikingSelfAttention(dim, num_heads, make, scale, out_bias=False, interaction=interaction)
            made.neuron = make(threshold=attention_threshold)
            return made

        blocks = [
            block(SEWShortcut(attention(), make), SEWShortcut(SpikingMLP(dim, int(dim * mlp_ratio), make), make))
            for _ in range(depth)
        ]
        super().__init__([Stage(embed, blocks, dim, embed.stride)], num_classes, in_chans, timesteps)


PAPER = ("TIM: An Efficient Temporal Interaction Module for Spiking Transformer", "2401.11687")
SOURCE = "TIM paper, IJCAI 2024"
DEAD = "the released code falls silent after the first timestep; here the thresholds are those that it means to set"
SIZE: dict[str, Any] = {"fixed_input_size": True}

register(
    TIMSpikformer,
    PAPER,
    {
        "tim_2_256_cifar10dvs": Variant(
            {"alpha": 0.6}, dvs(64) | SIZE, (Published("CIFAR10-DVS", 81.6, 10, SOURCE, f"alpha 0.6; {DEAD}"),)
        ),
        "tim_2_256_ncaltech101": Variant(
            {"alpha": 0.4}, dvs(64, classes=101) | SIZE, (Published("N-Caltech101", 79.0, 10, SOURCE, f"alpha 0.4; {DEAD}"),)
        ),
    },
)
