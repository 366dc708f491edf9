"""Norms without a division: a static map by channel, and one behind a gate of each token's size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LEAST, MOST = 0.25, 4.0
"""Between these a token's gate lies; that of a token of usual size is about 1."""
PART = 32  # images that are looked at together: what is made of all of them on the way would be several times the streams


class StaticNorm(nn.Module):
    """gain ⊙ x + offset, in place of LayerNorm: for each channel of the patches, and apart for each token before them.

    A class token has another scale than the patches, and no common map serves both. Gains fold into thresholds and weights
    behind them.

    Args:
        channels: C.
        prefix: tokens before the patches; without any, there may be any axes.
        dim: the axis of channels.
    """

    def __init__(self, channels: int, prefix: int = 0, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(prefix + 1, channels))
        self.bias = nn.Parameter(torch.zeros(prefix + 1, channels))

    @torch.no_grad()
    def start(self, x: Tensor, wanted: Tensor) -> None:
        """The least-squares map from ``x`` to ``wanted``, both ``[B, N, C]`` (or ``[B, C]``), channel by channel."""
        self._map(*(self._channels_last(each) for each in (x, wanted)))

    def _map(self, x: Tensor, wanted: Tensor) -> None:
        for index in range(len(self.weight)):
            self.weight[index], self.bias[index] = self._line(index, x, wanted)

    def _line(self, index: int, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and offset of one row."""

        def mean(value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            total, count = x.new_zeros(()), 0
            for part, target in zip(x.split(PART), wanted.split(PART), strict=True):
                values = value(self._row(self._scaled(part), index), self._row(target, index))
                total, count = total + values.sum(0), count + len(values)
            return total / count

        centre, middle = mean(lambda given, target: torch.stack((given, target), 1))
        variance, shared = mean(
            lambda given, target: torch.stack(((given - centre).square(), (given - centre) * (target - middle)), 1)
        )
        steady = 1e-4 * variance.mean() + torch.finfo(x.dtype).tiny  # a class token is the same for all images at first
        gain = shared / (variance + steady)
        return gain, middle - gain * centre

    def no_weight_decay(self) -> set[str]:
        """As timm's models have it: a norm has no weights."""
        return {name for name, _ in self.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` (or ``[B, C]`` where there are patches only) to the same shape."""
        return self._channels_last(self._of_tokens(self._channels_last(x)))

    def _of_tokens(self, x: Tensor) -> Tensor:
        """Of channels that lie along the last axis."""
        return self._scaled(x) * self._by_token(self.weight, x) + self._by_token(self.bias, x)

    def _scaled(self, x: Tensor) -> Tensor:
        """What the map reads."""
        return x

    def _channels_last(self, x: Tensor) -> Tensor:
        """With the axis of channels and the last one exchanged."""
        return x if self.dim in (-1, x.ndim - 1) else x.transpose(self.dim, -1)

    def _row(self, x: Tensor, index: int) -> Tensor:
        """Of ``x`` ``[B, N, C]`` the tokens that one row of the parameters is for, in one axis; of one row all."""
        if len(self.weight) == 1:
            return x.flatten(0, -2)
        tokens = x if x.ndim > 2 else x.unsqueeze(1)
        return tokens[:, index : index + 1 if index < len(self.weight) - 1 else None].flatten(0, 1)

    def _by_token(self, rows: Tensor, x: Tensor) -> Tensor:
        prefix = len(rows) - 1
        return torch.cat([rows[:prefix], rows[prefix:].expand(x.shape[-2] - prefix, -1)]) if prefix else rows[0]

    def extra_repr(self) -> str:
        """The sizes, as ``print(model)`` shows them."""
        return f"{self.weight.shape[1]}, prefix={len(self.weight) - 1}"


class GatedNorm(StaticNorm):
    """gain ⊙ r x + offset,  r = clip(level + slope · mean_channels |x - centre|, 1/4, 4): small tokens are amplified.

    This is ours. LayerNorm divides a token by its own standard deviation; here a line of its mean magnitude takes the place of
    the reciprocal, with level and slope apart for each token before the patches. The magnitude is two ReLUs, and the clipped
    line a neuron's rate between silence and saturation, as in a Q-K token gate, so nothing is left but one product.
    """

    def __init__(self, channels: int, prefix: int = 0, dim: int = -1) -> None:
        super().__init__(channels, prefix, dim)
        self.centre = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.zeros(prefix + 1, 1))
        self.level = nn.Parameter(torch.ones(prefix + 1, 1))
        self.above, self.below, self.clip = nn.ReLU(), nn.ReLU(), nn.Hardtanh(LEAST, MOST)

    @torch.no_grad()
    def start(self, x: Tensor, wanted: Tensor) -> None:
        """The line next to the usual magnitude over a token's own, and behind it the map of `StaticNorm`."""
        x, wanted = (self._channels_last(each) for each in (x, wanted))
        self.centre.copy_(x.flatten(0, -2).mean(0))
        size = torch.cat([self._size(part) for part in x.split(PART)])
        for index in range(len(self.weight)):
            mine = self._row(size, index) + torch.finfo(x.dtype).eps
            usual = mine.mean()
            ratio, excess = usual / mine, mine - usual
            steady = 1e-3 * usual.square()
            self.slope[index] = (ratio * excess).mean() / (excess.square().mean() + steady)
            self.level[index] = ratio.mean() - self.slope[index] * usual
        self._map(x, wanted)

    def _scaled(self, x: Tensor) -> Tensor:
        return self._gate(x) * x

    def _size(self, x: Tensor) -> Tensor:
        apart = x - self.centre
        size: Tensor = (self.above(apart) + self.below(-apart)).mean(-1, keepdim=True)
        return size

    def _gate(self, x: Tensor) -> Tensor:
        gate: Tensor = self.clip(self._size(x) * self._by_token(self.slope, x) + self._by_token(self.level, x))
        return gate


NORMS = {"static": StaticNorm, "gated": GatedNorm}
