"""The attention of a block as a sum of terms, in timm's places and under timm's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..branches.base import BlockSize
from .base import READS, Own, interacts, summands, widths


class SubstituteAttention(nn.Module):
    """W_o Σ terms(W x): normed tokens ``[B, N, C]`` to the same shape, as `timm.layers.Attention`.

    Attributes:
        qkv: the maps that some term reads, one after another.
        terms: by name.
        interacts: whether spikes of the query shall depend on those of the timestep before.
        proj: W_o.

    Args:
        kind: such as ``qk-channel+conv``.
        size: of the block.

    Raises:
        ModelError: there is no such term, or a block of this size cannot have it.
    """

    def __init__(self, kind: str, size: BlockSize) -> None:
        super().__init__()
        classes = summands(kind)
        self.heads = size.heads
        wide = widths(size)
        self.widths = {name: wide[name] for name in READS if any(name in found.reads for found in classes.values())}
        self.qkv = nn.Linear(size.channels, sum(self.widths.values()))
        self.interacts = interacts(kind)
        self.terms = nn.ModuleDict({name: found(size) for name, found in classes.items()})
        self.proj = nn.Linear(size.channels, size.channels)

    @torch.no_grad()
    def inherit(self, own: Own) -> None:
        """Take the maps of the ANN's attention."""
        maps = [READS[name](own, self.heads) for name in self.widths]
        for part, found in zip(self.qkv.weight.split(list(self.widths.values())), maps, strict=True):
            part.copy_(found.weight)
        for part, found in zip(self.qkv.bias.split(list(self.widths.values())), maps, strict=True):
            part.copy_(found.bias)
        self.proj.weight.copy_(own["out"].weight)
        self.proj.bias.copy_(own["out"].bias)

    @torch.no_grad()
    def start(self, normed: Tensor, own: Own, wanted: Tensor) -> None:
        """Start all terms from statistics of the ANN's attention on a few images.

        Args:
            normed: what it reads, ``[B, N, C]``.
            own: its maps.
            wanted: what its heads give, in front of its output map, ``[B, N, C]``.
        """
        query, key = (
            self._by_head(nn.functional.linear(normed, own[name].weight, own[name].bias)) for name in ("query", "key")
        )
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1).mean(0)
        read, lacking = self._read(normed), self._by_head(wanted)
        found: Any
        for found in self.terms.values():
            found.start(attention, read, lacking)
            lacking = lacking - found(normed, read)

    @property
    def last(self) -> nn.Linear:
        """W_o."""
        return self.proj

    def mixed(self, x: Tensor) -> Tensor:
        """What the last map reads: the sum of the terms, ``[B, N, C]``."""
        read = self._read(x)
        total: Tensor = sum(found(x, read) for found in self.terms.values())
        return total.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """``[B, N, C]`` to the same shape; timm's blocks hand over a mask, and substitutes have none.

        Raises:
            ValueError: there is a mask.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("this attention knows no mask")
        out: Tensor = self.proj(self.mixed(x))
        return out

    def _read(self, x: Tensor) -> dict[str, Tensor]:
        parts = self.qkv(x).split(list(self.widths.values()), -1)
        return {
            name: part.unsqueeze(1) if name == "shared-key" else self._by_head(part)
            for name, part in zip(self.widths, parts, strict=True)
        }

    def _by_head(self, x: Tensor) -> Tensor:
        by_head: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return by_head
