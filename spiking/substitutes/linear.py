"""Linear Q-K attention: spiking self-attention without its softmax, in the order that is linear in tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..branches.base import BlockSize
from .base import Read, Term, spread_out, term


@term("ssa")
class LinearAttention(Term):
    """g ⊙ relu(q) (relu(k - mean_tokens k)ᵀ v) / N, with a gain and an offset for each channel of q and k, and g for each head.

    Spikformer's SSA (Zhou et al., ICLR 2023) has spikes in place of both ReLUs. Keys are centred over tokens: what all tokens
    have in common says nothing about which to attend to, and without a softmax it would be in every product.
    """

    reads = ("query", "key", "value")
    queries = ("rectify_query",)

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        shape = size.heads, 1, size.channels // size.heads
        self.query_gain, self.key_gain = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(shape))
        self.query_offset, self.key_offset = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        self.gain = nn.Parameter(torch.zeros(size.heads, 1, 1))
        self.rectify_query, self.rectify_key = nn.ReLU(), nn.ReLU()

    @torch.no_grad()
    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """Standardise q and k; the gain is that of least squares."""
        for name, x in (("query", read["query"]), ("key", _centred(read["key"]))):
            gain, offset = spread_out(x, (0, 2), 0.0, 1.0)
            self.get_parameter(f"{name}_gain").copy_(gain)
            self.get_parameter(f"{name}_offset").copy_(offset)
        self.gain.fill_(1)
        given = self(wanted, read)
        dims = 0, 2, 3
        self.gain.copy_(((given * wanted).sum(dims) / given.square().sum(dims).clamp(min=1e-12)).reshape_as(self.gain))

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """Products of q, k and v."""
        q = self.rectify_query(read["query"] * self.query_gain + self.query_offset)
        k = self.rectify_key(_centred(read["key"]) * self.key_gain + self.key_offset)
        attended: Tensor = q @ (k.transpose(-1, -2) @ read["value"]) * (self.gain / q.shape[-2])
        return attended


def _centred(key: Tensor) -> Tensor:
    return key - key.mean(-2, keepdim=True)
