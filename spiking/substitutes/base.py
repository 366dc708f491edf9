"""What every substitute of softmax attention says for itself, and their registry.

A substitute is an ordinary float module of spike-friendly parts: linear maps, products, and functions that a neuron's threshold
or saturation computes (a ReLU, a line clipped at 0 and 1). It takes the place of attention in a pretrained ViT, inherits its
maps, and is fitted to what it replaces before there are any spikes. Attention of the literature, which computes on spikes from
the start, is in `vit2snn.spiking.branches`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..branches.base import BlockSize

JOIN = "+"
INTERACTION = "tim"
"""In a sum, it says that the query's spikes depend also on those of the timestep before, by
`vit2snn.spiking.TemporalInteraction`. It adds nothing, and without time it does nothing."""
SPREAD = 0.05
"""Standard deviation, over images, of a gate that has just been started: almost all images lie within its slope."""

Read = Mapping[str, Tensor]
"""Linear maps of the normed tokens, by name, each ``[B, heads, N, channels]``; see `READS`."""

T = TypeVar("T", bound="type[Term]")


@dataclass(frozen=True)
class Inherited:
    """A linear map of the ANN that a part of a substitute starts from."""

    weight: Tensor
    bias: Tensor


Own = Mapping[str, Inherited]
"""The maps of the ANN's branch: ``query``, ``key``, ``value`` and ``out`` of attention, all heads together, or ``expand`` and
``reduce`` of a perceptron."""


class Term(nn.Module):
    """One summand of the attention of a block: what the maps of its tokens are to ``[B, heads, N, C / heads]``.

    Attributes:
        reads: the maps that it reads, names of `READS`.
        mixes_tokens: whether what a token gets depends on all others.
        inherited: its own parameters that start from the ANN's; all others are new.
        queries: its functions of the query, by name, whose spikes a temporal interaction may follow.

    Args:
        size: of the block.

    Raises:
        ModelError: a block of this size cannot have it.
    """

    reads: ClassVar[tuple[str, ...]] = ("value",)
    mixes_tokens: ClassVar[bool] = True
    inherited: ClassVar[tuple[str, ...]] = ()
    queries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, size: BlockSize) -> None:
        super().__init__()

    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """Take the parameters from statistics of the ANN's own branch on a few images; without it they do nothing or pass all.

        Args:
            attention: the ANN's attention, averaged over images, ``[heads, N, N]``.
            read: this term's maps.
            wanted: what the sum still lacks to the ANN's, ``[B, heads, N, C / heads]``.
        """

    def no_weight_decay(self) -> set[str]:
        """As timm's models have it: gains and offsets are no weights."""
        return {name for name, _ in self.named_parameters(recurse=False) if name not in self.inherited}

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
    """Whether a name is that of a term, or of a sum of different terms; its last part may ask for a temporal interaction."""
    names = kind.split(JOIN)
    if len(names) > 1 and names[-1] == INTERACTION:
        names = names[:-1]
        if not any(name in _TERMS and _TERMS[name].queries for name in names):
            return False
    return len(set(names)) == len(names) and all(name in _TERMS for name in names)


def interacts(kind: str) -> bool:
    """Whether a sum asks for a temporal interaction."""
    return kind.split(JOIN)[-1] == INTERACTION


def summands(kind: str) -> dict[str, type[Term]]:
    """The classes of a sum's terms, by name.

    Raises:
        ModelError: there is no such term; the hint lists them.
    """
    if not is_sum(kind):
        raise ModelError(f"there is no attention {kind!r}", f"it is a sum of different terms: {JOIN.join(_TERMS)}")
    return {name: _TERMS[name] for name in kind.split(JOIN) if name != INTERACTION}


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


def shared_key(query: Tensor, key: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Queries of all heads ``[C, C]`` for one key ``[C / heads, C]``, in place of a key for each head.

    The scores of head i are xᵀ M_i x with M_i = Q_iᵀ K_i. The shared key consists of the leading right singular vectors V of
    all M_i stacked, the best such subspace in least squares, and the queries are Q_i' = (M_i V)ᵀ.

    Args:
        query: Q of all heads, ``[C, C]``.
        key: K of all heads, ``[C, C]``.
        heads: how many.
    """
    width = len(query) // heads
    scores = torch.einsum("hdi,hdj->hij", query.unflatten(0, (heads, -1)), key.unflatten(0, (heads, -1)))
    vectors = torch.linalg.eigh(torch.einsum("hij,hik->jk", scores, scores))[1][:, -width:]
    return torch.einsum("hij,jd->hdi", scores, vectors).flatten(0, 1), vectors.T.contiguous()
