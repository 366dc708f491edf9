"""What every kind of spiking branch says for itself: the one protocol of converted ViTs, the zoo and the searches.

A branch takes the place of a block's attention or perceptron: spikes ``[T * B, C, H, W]`` to currents of the same shape. A
kind is a class, in a file of its own, that `vit2snn.spiking.branches.registry.branch` gives its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from ..membrane import NeuronFactory
from ..tokens import Balanced
from .count import Counts

ATTENTION_THRESHOLD = 0.5  # of the neuron behind the product; all other neurons of the literature have 1


@dataclass(frozen=True)
class Widths:
    """Of a block, whatever the size of its maps.

    Attributes:
        channels: C, of the stream.
        heads: of its attention.
        hidden: channels of its perceptron.
    """

    channels: int
    heads: int
    hidden: int


@dataclass(frozen=True)
class BlockSize(Widths):
    """Of a block on tokens: those of a grid of patches, and others before them (class, registers).

    Attributes:
        grid: patches, height and width.
        prefix: tokens before them.
    """

    grid: tuple[int, int]
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """N, of all kinds."""
        return self.grid[0] * self.grid[1] + self.prefix


@dataclass(frozen=True)
class Inherited:
    """A linear map of the ANN that a part stands for, and the function that the ANN applies to its output."""

    weight: Tensor
    bias: Tensor
    reads: Callable[[Tensor], Tensor] = field(default=lambda z: z)


Own = Mapping[str, Inherited]
"""The maps of the ANN's branch: ``query``, ``key``, ``value`` and ``out`` of attention, all heads together, or ``expand`` and
``reduce`` of a perceptron."""

Role = Literal["projection", "gate", "product", "mask", "output"]


class Part(NamedTuple):
    """One part of a branch, as it is fitted.

    Attributes:
        name: of the submodule.
        role: what it is, and so how it is fitted. ``projection``: a `vit2snn.spiking.SpikingProjection` of what the branch
            reads, with an inherited map; ``gate``: one of anything, without. ``product``: a `vit2snn.spiking.Balanced` neuron
            whose spikes stand for the output of the ANN's attention, once or for each expert; ``mask``: one without a
            counterpart in the ANN. ``output``: the `vit2snn.spiking.ConvBN` that ends the branch, with an inherited map.
    """

    name: str
    role: Role


class Branch(nn.Module):
    """The protocol. Class attributes and class methods are asked before any branch is made.

    Attributes:
        mixes_tokens: whether what a token gets depends on all others.
        interacts: whether a submodule ``interaction`` sees the query's spikes ``[T * B, heads, C / heads, tokens]``, so that
            `vit2snn.spiking.TemporalInteraction` can take its place.
    """

    mixes_tokens: ClassVar[bool] = False
    interacts: ClassVar[bool] = False

    @classmethod
    def for_maps(cls, widths: Widths, neuron: NeuronFactory, **options: Any) -> Branch:
        """As models that are trained directly have it, on maps ``[T * B, C, H, W]``; ``options`` are the constructor's."""
        raise NotImplementedError

    @classmethod
    def for_tokens(cls, size: BlockSize, neuron: NeuronFactory) -> Branch:
        """As a converted ViT has it, on maps of 1 by N tokens: neurons behind products can be balanced."""
        made = cls.for_maps(size, neuron)
        for name, (groups, channels, _) in cls.products(size).items():
            balanced = Balanced(neuron(), (groups, channels, 1))
            nn.init.constant_(balanced.gain, 1 / ATTENTION_THRESHOLD)
            made.set_submodule(name, balanced)
        return made

    @classmethod
    def products(cls, size: BlockSize) -> dict[str, tuple[int, int, int]]:
        """The neurons behind products of spikes, by name, and what they see of an image: heads, channels of each, tokens."""
        return {}

    @classmethod
    def count(cls, size: BlockSize) -> Counts:
        """What it costs on a map, all layers with biases."""
        raise NotImplementedError

    @classmethod
    def inherited(cls, own: Own, heads: int) -> dict[str, Inherited]:
        """The maps that projections and output stand for, by name, of an ANN's branch."""
        raise NotImplementedError

    def parts(self) -> list[Part]:
        """The parts in the order in which they are fitted: that in which signals pass them, the output last."""
        raise NotImplementedError

    def new_parts(self) -> list[str]:
        """The parts without a counterpart in the ANN that have weights."""
        return [part.name for part in self.parts() if part.role == "gate"] + ["interaction"] * self.interacts
