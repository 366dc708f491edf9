"""What every kind of spiking branch says for itself: the one protocol of the zoo and the searches.

A branch takes the place of a block's attention or perceptron: spikes ``[T * B, C, H, W]`` to currents of the same shape. A
kind is a class, in a file of its own, that `vit2snn.spiking.branches.registry.branch` gives its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..membrane import NeuronFactory
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


class Branch(nn.Module):
    """The protocol. Class methods are asked before any branch is made."""

    @classmethod
    def for_maps(cls, widths: Widths, neuron: NeuronFactory, **options: Any) -> Branch:
        """As models that are trained directly have it, on maps ``[T * B, C, H, W]``; ``options`` are the constructor's."""
        raise NotImplementedError

    @classmethod
    def products(cls, size: BlockSize) -> dict[str, tuple[int, int, int]]:
        """The neurons behind products of spikes, by name, and what they see of an image: heads, channels of each, tokens."""
        return {}

    @classmethod
    def count(cls, size: BlockSize) -> Counts:
        """What it costs on a map, all layers with biases."""
        raise NotImplementedError
