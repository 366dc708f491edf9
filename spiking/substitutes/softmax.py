"""A softmax of lines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

KNOTS = (-2.0, -0.5, 1.0, 2.5, 4.0)
"""Where the exponential is cut into lines, in scores."""
BEYOND = 1.3
"""Slope above the last knot, over the exponential there."""
MEANS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
"""Where the reciprocal is cut into lines, in multiples of what is usual; beyond the last it is constant."""
SHUT = -50.0
"""Scores that are so far from the largest of their row on all images are those of a mask."""


class RectifiedSoftmax(nn.Module):
    """r ⊙ A / N,  A = Σ_m relu(g_m ⊙ (s - mean_keys s) + b_m),  r = [e + Σ_i relu(c_i + d_i ⊙ mean_keys A / u)] / u, of s.

    This is ours. The exponential is a sum of ReLUs that agrees with it at `KNOTS`, and so is the reciprocal of its mean over
    keys, at multiples `MEANS` of the mean u that is usual; so a neuron computes all but the product. Without the reciprocal an
    image with many likely keys would drown all others, and a single line of it lets some images grow without bound from block
    to block. What a mask shuts out counts for nothing.

    Args:
        heads: each has lines of its own; 1 where the scores have no axis of heads.
        prefix: the first so many rows each have a usual mean of their own.
        dim: the axis of the keys; that of the queries is the last one beside it, and that of the heads the one before.
    """

    shut: Tensor
    usual: Tensor

    def __init__(self, heads: int, prefix: int = 0, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        knots = torch.tensor(KNOTS)
        heights = knots.exp()
        slopes = torch.cat([heights.diff() / knots.diff(), BEYOND * heights[-1:]])
        gains = slopes.diff(prepend=slopes.new_zeros(1))
        self.gains = nn.Parameter(gains[:, None, None, None].repeat(1, heads, 1, 1))
        self.offsets = nn.Parameter((-gains * knots)[:, None, None, None].repeat(1, heads, 1, 1))
        rows = heads, prefix + 1, 1
        self.slopes = nn.Parameter(torch.zeros(len(MEANS) - 1, *rows))
        self.levels = nn.Parameter(torch.zeros(len(MEANS) - 1, *rows))
        self.least = nn.Parameter(torch.ones(rows))
        self.register_buffer("usual", torch.ones(rows))  # so that all that is learnt is near 1, as one learning rate asks for
        self.rectify = nn.ModuleList(nn.ReLU() for _ in KNOTS)
        self.saturate = nn.ModuleList(nn.ReLU() for _ in MEANS[1:])
        self.register_buffer("shut", torch.zeros(0, dtype=torch.bool))  # what a mask shuts out, if there is one

    def no_weight_decay(self) -> set[str]:
        """As timm's models have it: lines have no weights."""
        return {name for name, _ in self.named_parameters(recurse=False)}

    @torch.no_grad()
    def start(self, scores: Tensor, images: int) -> None:
        """The mask, and lines of the reciprocal around the usual mean of a row, from the scores of so many images."""
        scores = self._keys_last(scores)
        shut = (scores < scores.amax(-1, keepdim=True) + SHUT).unflatten(0, (images, -1)).all(0)
        self.shut = shut if shut.any() else shut.new_zeros(0)
        self.start_rows(self._mean(self._attend(scores)))

    @torch.no_grad()
    def start_rows(self, means: Tensor) -> None:
        """Lines of the reciprocal around the usual of such means, ``[B, ..., heads, N, 1]``."""
        heads = len(self.least)
        means = means.reshape(-1, heads, *means.shape[-2:]).mean(0) if heads > 1 else means.flatten(0, -3).mean(0, keepdim=True)
        prefix = self.least.shape[1] - 1
        self.usual.copy_(torch.cat([means[:, :prefix], means[:, prefix:].mean(1, keepdim=True)], 1))
        knots = torch.tensor(MEANS).to(means)
        falls = -(1 / knots).diff() / knots.diff()  # of 1 / x between two knots, positive and falling
        steps = falls - torch.cat([falls[1:], falls.new_zeros(1)])
        for step, knot, slope, level in zip(steps, knots[1:], self.slopes, self.levels, strict=True):
            slope.fill_(-step)
            level.fill_(step * knot)
        self.least.fill_(1 / knots[-1])

    def forward(self, input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
        """Weights of the keys, of the shape of the scores; arguments are those of `torch.nn.functional.softmax`."""
        attention = self._attend(self._keys_last(input))
        weights = self.share(self._mean(attention)) / self._count(attention) * attention
        return self._keys_last(weights.reshape(self._keys_last(input).shape))

    def _attend(self, scores: Tensor) -> Tensor:
        """A, with the windows of an image along an axis of their own, ``[B, K, ...]``, where they have masks."""
        if not self._is_masked:
            return self.lines(scores - self._mean(scores))
        scores = scores.unflatten(0, (-1, len(self.shut))).masked_fill(self.shut, 0.0)
        return self.lines(scores - self._mean(scores)).masked_fill(self.shut, 0.0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Whether there is a mask, and which, is known only from images, so its shape is taken from the file.
        if (saved := state_dict.get(f"{prefix}shut")) is not None:
            self.shut = torch.empty(saved.shape, dtype=torch.bool, device=self.shut.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check_mask(self, scores: Tensor) -> None:
        """Refuse a mask that does not fit the scores ``[B, ...]`` of an image.

        Raises:
            ValueError: it does not; both shapes are told.
        """
        seen, mask = self._keys_last(scores).shape, self.shut.shape
        if self._is_masked and (len(mask) != len(seen) or seen[0] % mask[0] or mask[1:] != seen[1:]):
            raise ValueError(f"the mask has shape {list(mask)}, and the scores {list(seen)}")

    @property
    def _is_masked(self) -> bool:
        return self.shut.numel() > 0

    def _mean(self, x: Tensor) -> Tensor:
        """Over the keys that are not shut out."""
        return x.sum(-1, keepdim=True) / self._count(x)

    def _count(self, x: Tensor) -> Tensor | int:
        """Of the keys that are not shut out."""
        return (~self.shut).sum(-1, keepdim=True).clamp(min=1) if self._is_masked else x.shape[-1]

    def lines(self, scores: Tensor) -> Tensor:
        """A, of centred scores ``[..., heads, N, M]``."""
        each = zip(self.rectify, self.gains, self.offsets, strict=True)
        total: Tensor = sum(rectify(scores * gain + offset) for rectify, gain, offset in each)  # one map at a time
        return total

    def share(self, means: Tensor) -> Tensor:
        """r, of the means of A over keys ``[..., heads, N, 1]``."""
        share = self._by_row(self.least / self.usual, means)
        slopes, levels = self.slopes / self.usual.square(), self.levels / self.usual
        for saturate, slope, level in zip(self.saturate, slopes, levels, strict=True):
            share = share + saturate(means * self._by_row(slope, means) + self._by_row(level, means))
        return share

    def _keys_last(self, x: Tensor) -> Tensor:
        return x if self.dim in (-1, x.ndim - 1) else x.transpose(self.dim, -1)

    def _by_row(self, rows: Tensor, x: Tensor) -> Tensor:
        prefix = rows.shape[1] - 1
        return torch.cat([rows[:, :prefix], rows[:, prefix:].expand(-1, x.shape[-2] - prefix, -1)], 1) if prefix else rows
