"""Full Q-K attention on rectified scores: what lines can do of a softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..branches.base import BlockSize
from .base import Read, Term, term

KNOTS = (-2.0, -0.5, 1.0, 2.5, 4.0)
"""Where the exponential is cut into lines, in scores."""
BEYOND = 1.3
"""Slope above the last knot, over the exponential there."""
LEAST = 0.2
"""What the line of a reciprocal is clipped at, over its mean."""


@term("qk-relu")
class RectifiedAttention(Term):
    """r ⊙ (A v) / N,  A = Σ_m relu(g_m ⊙ q (k - mean_tokens k)ᵀ + b_m),  r = max(c + d ⊙ mean_keys A, e).

    This is ours: a softmax of lines. The exponential is a sum of ReLUs, and the reciprocal of its mean over keys a line of that
    mean, so a neuron computes all but the products. The lines start where they follow the softmax best: those of each head's
    exponential at `KNOTS`, and those of the reciprocal by least squares, for the patches and for each token before them.
    Without the reciprocal an image with many likely keys would drown all others.
    """

    reads = ("query", "key", "value")

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        self.scale = (size.channels // size.heads) ** -0.5
        knots = torch.tensor(KNOTS)
        heights = knots.exp()
        slopes = torch.cat([heights.diff() / knots.diff(), BEYOND * heights[-1:]])
        gains = slopes.diff(prepend=slopes.new_zeros(1))
        self.gains = nn.Parameter(gains[:, None, None, None].repeat(1, size.heads, 1, 1))
        self.offsets = nn.Parameter((-gains * knots)[:, None, None, None].repeat(1, size.heads, 1, 1))
        self.slope = nn.Parameter(torch.zeros(size.heads, size.prefix + 1, 1))
        self.level = nn.Parameter(torch.ones(size.heads, size.prefix + 1, 1))
        self.least = nn.Parameter(torch.zeros(size.heads, size.prefix + 1, 1))
        self.rectify, self.saturate = nn.ReLU(), nn.ReLU()

    @torch.no_grad()
    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """The line of least squares for the reciprocal of each row's mean."""
        means = self._map(read).mean(-1, keepdim=True)  # [B, heads, N, 1]
        last = self.level.shape[1] - 1
        for index in range(last + 1):
            own = means[:, :, index : index + 1 if index < last else None].transpose(0, 1).flatten(1)
            wished = 1 / own.clamp(min=1e-3 * own.mean())
            middle, mean = own.mean(1), wished.mean(1)
            spread = (own - middle[:, None]).square().mean(1).clamp(min=torch.finfo(own.dtype).tiny)
            slope = ((own - middle[:, None]) * (wished - mean[:, None])).mean(1) / spread
            self.slope[:, index, 0] = slope
            self.level[:, index, 0] = mean - slope * middle
            self.least[:, index, 0] = LEAST * mean

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """Attend by the rectified scores."""
        attention = self._map(read)
        means = attention.mean(-1, keepdim=True)
        slope, level, least = (self._by_token(rows, means) for rows in (self.slope, self.level, self.least))
        share = self.saturate(means * slope + (level - least)) + least
        attended: Tensor = share / attention.shape[-1] * (attention @ read["value"])
        return attended

    def _map(self, read: Read) -> Tensor:
        key = read["key"]
        scores = read["query"] @ (key - key.mean(-2, keepdim=True)).transpose(-1, -2) * self.scale
        lines = [self.rectify(scores * gain + offset) for gain, offset in zip(self.gains, self.offsets, strict=True)]
        return torch.stack(lines).sum(0)

    def _by_token(self, rows: Tensor, x: Tensor) -> Tensor:
        prefix = rows.shape[1] - 1
        return torch.cat([rows[:, :prefix], rows[:, prefix:].expand(-1, x.shape[-2] - prefix, -1)], 1)
