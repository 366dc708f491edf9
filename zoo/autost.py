"""The model of AutoST's search spaces, free in width and block by block, on the frame of any architecture of the zoo.

Wang et al., "AutoST: Training-free Neural Architecture Search for Spiking Transformers", ICASSP 2024 (arXiv 2307.00293).
Written from the paper. Its own frame is Spikformer's patch embedding on a membrane shortcut, with learned leaks; other frames
and other kinds of attention are not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import ModelError
from ..spiking import NeuronFactory, Widths
from ..spiking.branches import find
from .frames import Frame
from .network import SpikingTransformer, Stage, block, neuron_factory
from .registry import Variant, cifar, register


class AutoST(SpikingTransformer):
    """Blocks of the attention, heads and MLP ratio of each one's own, on the frame of another architecture.

    On AutoST's own frame: SPS without its last neuron, then blocks x + SSA(N(x)), x + MLP(N(x)).

    Args:
        dim: channels; of a hierarchical frame those of the last stage, and every stage before has half of the next one's.
        num_heads: heads of each block; as many as there are blocks. Of EMSA, its experts.
        mlp_ratios: hidden channels to channels of each block's MLP.
        attention: a kind in `vit2snn.spiking.branches` for all blocks, or one for each.
        frame: a name in `vit2snn.zoo.frames.FRAMES`.
        depths: blocks of each stage of a hierarchical frame.
        pools: which of the four convolutions pool; of a hierarchical frame its stem: ``imagenet``, ``cifar`` or ``dvs``.
        timesteps: T.
        num_classes: outputs.
        in_chans: channels of the input.
        neuron: name in `vit2snn.spiking.NEURONS`, or a factory.

    Raises:
        ModelError: lists of unequal length, heads that do not divide the width, an unknown attention, frame or neuron.
    """

    def __init__(
        self,
        dim: int = 384,
        num_heads: Sequence[int] = (8, 8, 8, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        attention: str | Sequence[str] = "ssa",
        frame: str = "autost",
        depths: Sequence[int] | None = None,
        pools: str = "0011",
        timesteps: int = 4,
        num_classes: int = 100,
        in_chans: int = 3,
        neuron: str | NeuronFactory = "plif",
    ) -> None:
        kinds = [attention] * len(num_heads) if isinstance(attention, str) else attention
        depths = depths or [len(num_heads)]
        if not len(num_heads) == len(mlp_ratios) == len(kinds) == sum(depths):
            raise ModelError(
                f"num_heads={num_heads}, mlp_ratios={mlp_ratios}, attention={attention} and depths={depths} must name the same "
                "blocks"
            )
        around, make = Frame.find(frame), neuron_factory(neuron)
        if len(depths) > 1 and not around.hierarchical:
            raise ModelError(f"the frame {frame!r} has one stage, got depths={depths}", "leave depths out")
        dims = [dim // 2**later for later in reversed(range(len(depths)))]
        blocks = iter(zip(kinds, num_heads, mlp_ratios, strict=True))
        stages = [
            Stage(embed, [_block(around, width, make, *next(blocks)) for _ in range(depth)], width, embed.stride)
            for embed, width, depth in zip(around.embed(in_chans, dims, make, pools), dims, depths, strict=True)
        ]
        super().__init__(stages, num_classes, in_chans, timesteps, make() if around.head_neuron else None)


def _block(frame: Frame, dim: int, neuron: NeuronFactory, kind: str, num_heads: int, mlp_ratio: float) -> nn.Module:
    widths = Widths(dim, num_heads, int(dim * mlp_ratio))
    return block(
        frame.shortcut(find("attention", kind).for_maps(widths, neuron, bias=True), neuron),
        frame.shortcut(find("mlp", "spiking").for_maps(widths, neuron), neuron),
    )


register(
    AutoST,
    ("AutoST: Training-free Neural Architecture Search for Spiking Transformers", "2307.00293"),
    {"autost_4_384_cifar100": Variant({}, cifar(100))},
)
