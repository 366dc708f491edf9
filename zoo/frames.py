"""The frames that blocks of attention and perceptron stand in: how an architecture embeds patches and adds its branches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..errors import ModelError
from ..spiking import SPEDS, ConvBN, MembraneShortcut, NeuronFactory, SEWShortcut, SpikingPatchSplitting
from . import qkformer, sdt, spikformer, spikingformer


class Residual(nn.Module):
    """x + BN(Conv3x3(x)) on currents: AutoST's position embedding has no neuron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.branch = ConvBN(dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to the same shape."""
        added: Tensor = x + self.branch(x)
        return added


Embed = Callable[[int, Sequence[int], NeuronFactory, str], Sequence[SpikingPatchSplitting | SPEDS]]


@dataclass(frozen=True)
class Frame:
    """What is left of an architecture without its blocks.

    Attributes:
        embed: makes the patch embeddings of its stages: of channels of the image, width of each stage, neuron, and stem.
        shortcut: around every branch.
        stems: by the size of images: ``imagenet``, ``cifar`` or ``dvs``; what ``embed`` is given.
        head_neuron: whether there is a neuron in front of the head.
        hierarchical: whether it has several stages, each of twice the width and half the resolution of the one before.
    """

    embed: Embed
    shortcut: type[SEWShortcut] | type[MembraneShortcut]
    stems: Mapping[str, str] = field(default_factory=lambda: {"imagenet": "1111", "cifar": "0011", "dvs": "1111"})
    head_neuron: bool = False
    hierarchical: bool = False

    @classmethod
    def find(cls, name: str) -> Frame:
        """By name.

        Raises:
            ModelError: there is no such frame.
        """
        if name not in FRAMES:
            raise ModelError(f"there is no frame {name!r}", f"choose one of {', '.join(FRAMES)}")
        return FRAMES[name]


def _splitting(make: Callable[[int, int, NeuronFactory, str], SpikingPatchSplitting]) -> Embed:
    return lambda in_chans, dims, neuron, pools: [make(in_chans, dims[0], neuron, pools)]


def _autost(in_chans: int, dim: int, neuron: NeuronFactory, pools: str) -> SpikingPatchSplitting:
    return SpikingPatchSplitting(in_chans, dim, neuron, pools, Residual(dim), last_neuron=False)


FRAMES: dict[str, Frame] = {
    "spikformer": Frame(_splitting(spikformer.patch_splitting), SEWShortcut),
    "sdt": Frame(_splitting(sdt.patch_splitting), MembraneShortcut, head_neuron=True),
    "spikingformer": Frame(_splitting(spikingformer.patch_splitting), MembraneShortcut),
    "autost": Frame(_splitting(_autost), MembraneShortcut),
    "qkformer": Frame(qkformer.patch_embeddings, SEWShortcut, {stem: stem for stem in qkformer.STEMS}, hierarchical=True),
}
"""The streams of ``spikformer`` and ``qkformer`` are integers, those of the others real-valued, with binary spikes into every
layer."""
