"""A norm without a division: a static map by channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StaticNorm(nn.Module):
    """gain ⊙ x + offset, in place of LayerNorm: for each channel of the patches, and apart for each token before them.

    A class token has another scale than the patches, and no common map serves both. Gains fold into thresholds and weights
    behind them.

    Args:
        channels: C.
        prefix: tokens before the patches.
    """

    def __init__(self, channels: int, prefix: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(prefix + 1, channels))
        self.bias = nn.Parameter(torch.zeros(prefix + 1, channels))

    @torch.no_grad()
    def start(self, x: Tensor, wanted: Tensor) -> None:
        """The least-squares map from ``x`` to ``wanted``, both ``[B, N, C]`` (or ``[B, C]``), channel by channel."""
        prefix = len(self.weight) - 1
        for index in range(prefix + 1):
            own = slice(index, index + 1) if index < prefix else slice(prefix, None)
            given, target = (z[:, own].flatten(0, 1) if z.ndim > 2 else z for z in (x, wanted))
            mean, middle = given.mean(0), target.mean(0)
            variance = (given - mean).square().mean(0)
            steady = 1e-4 * variance.mean() + torch.finfo(x.dtype).tiny  # a class token is the same for all images at first
            gain = ((given - mean) * (target - middle)).mean(0) / (variance + steady)
            self.weight[index] = gain
            self.bias[index] = middle - gain * mean

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` (or ``[B, C]`` where there are patches only) to the same shape."""
        return x * self._by_token(self.weight, x) + self._by_token(self.bias, x)

    def _by_token(self, rows: Tensor, x: Tensor) -> Tensor:
        prefix = len(rows) - 1
        return torch.cat([rows[:prefix], rows[prefix:].expand(x.shape[-2] - prefix, -1)]) if prefix else rows[0]

    def extra_repr(self) -> str:
        """The sizes, as ``print(model)`` shows them."""
        return f"{self.weight.shape[1]}, prefix={len(self.weight) - 1}"
