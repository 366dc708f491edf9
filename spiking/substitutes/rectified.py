"""Full Q-K attention on rectified scores: what lines can do of a softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from ..branches.base import BlockSize
from .base import Read, Term, term
from .softmax import RectifiedSoftmax


@term("qk-relu")
class RectifiedAttention(Term):
    """Attention with a `RectifiedSoftmax` of q (k - mean_tokens k)ᵀ, whose factor for each query is taken behind the value."""

    reads = ("query", "key", "value")

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        self.scale = (size.channels // size.heads) ** -0.5
        self.softmax = RectifiedSoftmax(size.heads, size.prefix)

    @torch.no_grad()
    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """Lines of the reciprocal around the usual mean of a row."""
        self.softmax.start_rows(self._map(read).mean(-1, keepdim=True))

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """Attend by the rectified scores."""
        attention = self._map(read)
        share = self.softmax.share(attention.mean(-1, keepdim=True))
        attended: Tensor = share / attention.shape[-1] * (attention @ read["value"])
        return attended

    def _map(self, read: Read) -> Tensor:
        key = read["key"]
        scores = read["query"] @ (key - key.mean(-2, keepdim=True)).transpose(-1, -2) * self.scale
        return self.softmax.lines(scores)
