"""Attention that masks spikes, in NIR: sums of spikes, one bit for each head or channel, and where it meets another spike.

Both forms take a list of token maps: those before the patches (class, registers), ``[C, 1, 1]`` each, and the patches last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .neurons import both
from .nodes import Builder, Current, Signal, convolved, pointwise


def named(name: str, index: int, count: int) -> str:
    """Of a node on the map of tokens with this index: the patches, which are the last, have no addition to their name."""
    return name if index == count - 1 else f"{name}.token{index}"


def sum_of_head(x: Signal, heads: int) -> Current:
    """The sum of the channels of each head: ``[C, H, W]`` to ``[heads, H, W]``."""
    return convolved(x, pointwise(np.repeat(np.eye(heads), x.shape[0] // heads, 1)))


def on_head(x: Signal, channels: int) -> Current:
    """A bit of each head on all its channels: ``[heads, H, W]`` to ``[C, H, W]``."""
    return convolved(x, pointwise(np.repeat(np.eye(x.shape[0]), channels // x.shape[0], 0)))


def sum_of_tokens(build: Builder, name: str, maps: Sequence[Signal]) -> Current:
    """The sum over the tokens of all maps, ``[C, 1, 1]``."""
    sums = [build.summed(f"{named(name, index, len(maps))}.sum", x) for index, x in enumerate(maps)]
    sources = tuple(source for x in sums for source in x.sources)
    return convolved(Signal(sources, sums[0].shape, sums[0].scale), pointwise(np.eye(sums[0].shape[0])))


def masked_by_head(build: Builder, name: str, bits: Sequence[Signal], spikes: Sequence[Signal]) -> list[Signal]:
    """Spikes ``[C, H, W]`` where the bit of their head and token ``[heads, H, W]`` is set."""
    count = len(spikes)
    return [
        both(build, named(f"{name}.masked", index, count), on_head(bit, x.shape[0]), x)
        for index, (bit, x) in enumerate(zip(bits, spikes, strict=True))
    ]


def masked_by_channel(build: Builder, name: str, bits: Signal, spikes: Sequence[Signal]) -> list[Signal]:
    """Spikes ``[C, H, W]`` where the bit of their channel ``[C, 1, 1]`` is set."""
    plain, count = bits._replace(scale=1.0), len(spikes)
    return [
        both(
            build, named(f"{name}.masked", index, count),
            build.spread(f"{named(name, index, count)}.spread", plain, *x.shape[1:]), x,
        )
        for index, x in enumerate(spikes)
    ]  # fmt: skip
