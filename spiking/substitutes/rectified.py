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
MEANS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
"""Where the reciprocal is cut into lines, in multiples of what is usual; beyond the last it is constant."""


@term("qk-relu")
class RectifiedAttention(Term):
    """r ⊙ (A v) / N,  A = Σ_m relu(g_m ⊙ q (k - mean_tokens k)ᵀ + b_m),  r = e + Σ_i relu(c_i + d_i ⊙ mean_keys A).

    This is ours: a softmax of lines. The exponential is a sum of ReLUs that agrees with it at `KNOTS`, and so is the reciprocal
    of its mean over keys, at multiples `MEANS` of the mean that is usual for the patches and for each token before them; so
    a neuron computes all but the products. Without the reciprocal an image with many likely keys would drown all others, and a
    single line of it lets some images grow without bound from block to block.
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
        rows = size.heads, size.prefix + 1, 1
        self.slopes = nn.Parameter(torch.zeros(len(MEANS) - 1, *rows))
        self.levels = nn.Parameter(torch.zeros(len(MEANS) - 1, *rows))
        self.least = nn.Parameter(torch.ones(rows))
        self.rectify = nn.ModuleList(nn.ReLU() for _ in KNOTS)
        self.saturate = nn.ModuleList(nn.ReLU() for _ in MEANS[1:])

    @torch.no_grad()
    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """Lines of the reciprocal around the usual mean of a row."""
        means = self._map(read).mean(-1, keepdim=True).mean(0)  # [heads, N, 1]
        prefix = self.least.shape[1] - 1
        usual = torch.cat([means[:, :prefix], means[:, prefix:].mean(1, keepdim=True)], 1)
        knots = torch.tensor(MEANS).to(usual)
        falls = -(1 / knots).diff() / knots.diff()  # of 1 / x between two knots, positive and falling
        steps = falls - torch.cat([falls[1:], falls.new_zeros(1)])
        for step, knot, slope, level in zip(steps, knots[1:], self.slopes, self.levels, strict=True):
            slope.copy_(-step / usual.square())
            level.copy_(step * knot / usual)
        self.least.copy_(1 / (knots[-1] * usual))

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """Attend by the rectified scores."""
        attention = self._map(read)
        means = attention.mean(-1, keepdim=True)
        by_token = self._by_token
        share = by_token(self.least, means)
        for saturate, slope, level in zip(self.saturate, self.slopes, self.levels, strict=True):
            share = share + saturate(means * by_token(slope, means) + by_token(level, means))
        attended: Tensor = share / attention.shape[-1] * (attention @ read["value"])
        return attended

    def _map(self, read: Read) -> Tensor:
        key = read["key"]
        scores = read["query"] @ (key - key.mean(-2, keepdim=True)).transpose(-1, -2) * self.scale
        each = zip(self.rectify, self.gains, self.offsets, strict=True)
        lines = [rectify(scores * gain + offset) for rectify, gain, offset in each]
        return torch.stack(lines).sum(0)

    def _by_token(self, rows: Tensor, x: Tensor) -> Tensor:
        prefix = rows.shape[1] - 1
        return torch.cat([rows[:, :prefix], rows[:, prefix:].expand(-1, x.shape[-2] - prefix, -1)], 1)
