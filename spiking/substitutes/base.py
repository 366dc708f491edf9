"""What every substitute of softmax attention says for itself, and their registry.

A substitute is an ordinary float module of spike-friendly parts: linear maps, products, and functions that a neuron's threshold
or saturation computes (a ReLU, a line clipped at 0 and 1). It takes the place of attention in a pretrained ViT, inherits its
maps, and is fitted to what it replaces before there are any spikes. Attention of the literature, which computes on spikes from
the start, is in `vit2snn.spiking.branches`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..branches.base import BlockSize, Inherited, Own
from ..branches.emsa import shared_key

JOIN = "+"
SPREAD = 0.05
"""Standard deviation, over images, of a gate that has just been started: almost all images lie within its slope."""

Read = Mapping[str, Tensor]
"""Linear maps of the normed tokens, by name, each ``[B, heads, N, channels]``; see `READS`."""

T = TypeVar("T", bound="type[Term]")


class Term(nn.Module):
    """One summand of the attention of a block: what the maps of its tokens are to ``[B, heads, N, C / heads]``.

    Attributes:
        reads: the maps that it reads, names of `READS`.
        mixes_tokens: whether what a token gets depends on all others.
        inherited: its own parameters that start from the ANN's; all others are new.

    Args:
        size: of the block.

    Raises:
        ModelError: a block of this size cannot have it.
    """

    reads: ClassVar[tuple[str, ...]] = ("value",)
    mixes_tokens: ClassVar[bool] = True
    inherited: ClassVar[tuple[str, ...]] = ()

    def __init__(self, size: BlockSize) -> None:
        super().__init__()

    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """Take the parameters from statistics of the ANN's own branch on a few images; without it they do nothing or pass all.

        Args:
            attention: the ANN's attention, averaged over images, ``[heads, N, N]``.
            read: this term's maps.
            wanted: what the sum still lacks to the ANN's, ``[B, heads, N, C / heads]``.
        """

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """From the normed tokens ``[B, N, C]`` and their maps."""
        raise NotImplementedError


_TERMS: dict[str, type[Term]] = {}


def term(kind: str) -> Callable[[T], T]:
    """Register a class as a kind of term; recipes know it from then on, also in sums: ``ssa+conv``.

    A later registration of a name replaces an earlier one.
    """

    def register(found: T) -> T:
        _TERMS[kind] = found
        return found

    return register


def terms() -> tuple[str, ...]:
    """The names of all kinds."""
    return tuple(_TERMS)


def is_sum(kind: str) -> bool:
    """Whether a name is that of a term, or of a sum of different terms."""
    names = kind.split(JOIN)
    return len(set(names)) == len(names) and all(name in _TERMS for name in names)


def summands(kind: str) -> dict[str, type[Term]]:
    """The classes of a sum's terms, by name.

    Raises:
        ModelError: there is no such term; the hint lists them.
    """
    if not is_sum(kind):
        raise ModelError(f"there is no attention {kind!r}", f"it is a sum of different terms: {JOIN.join(_TERMS)}")
    return {name: _TERMS[name] for name in kind.split(JOIN)}


def _itself(name: str) -> Callable[[Own, int], Inherited]:
    return lambda own, heads: own[name]


def _expert(index: int) -> Callable[[Own, int], Inherited]:
    def inherit(own: Own, heads: int) -> Inherited:
        weight = shared_key(own["query"].weight.double(), own["key"].weight.double(), heads)[index]
        return Inherited(weight, weight.new_zeros(len(weight)))

    return inherit


READS: Mapping[str, Callable[[Own, int], Inherited]] = {
    "query": _itself("query"), "key": _itself("key"), "value": _itself("value"),
    "expert-query": _expert(0), "shared-key": _expert(1),
}  # fmt: skip
"""The maps that terms may read, and what of the ANN's each inherits; all heads together, but for the one shared key."""


def widths(size: BlockSize) -> dict[str, int]:
    """Output channels of each map of `READS`."""
    return dict.fromkeys(READS, size.channels) | {"shared-key": size.channels // size.heads}


def spread_out(x: Tensor, dims: tuple[int, ...], centre: float, spread: float) -> tuple[Tensor, Tensor]:
    """Gain and offset that give ``x`` a mean of ``centre`` and a standard deviation of ``spread`` along ``dims``."""
    mean, deviation = x.mean(dims, keepdim=True), x.std(dims, keepdim=True, correction=0)
    gain = spread / deviation.clamp(min=1e-3 * float(deviation.mean()) + torch.finfo(x.dtype).tiny)
    return gain.squeeze(0), (centre - gain * mean).squeeze(0)
