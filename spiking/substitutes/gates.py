"""Q-K attention: the query decides which tokens or channels of the value pass.

Zhou et al., "QKFormer: Hierarchical Spiking Transformer using Q-K Attention", NeurIPS 2024: a mask from sums of the query's
spikes, on the key. The key passes to the output, so here it is the ANN's value; the mask is a line clipped at 0 and 1, which a
neuron's rate between silence and saturation is.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..branches.base import BlockSize
from .base import SPREAD, Read, Term, spread_out, term


class Gate(nn.Module):
    """clip(gain ⊙ mean relu(q) + offset, 0, 1): the mean over tokens or channels.

    Args:
        heads: of the query.
        width: channels of a head, where each has a gate; 1 where the tokens have.
        axis: of the mean.
    """

    def __init__(self, heads: int, width: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.gain = nn.Parameter(torch.zeros(heads, 1, width))
        self.offset = nn.Parameter(torch.full((heads, 1, width), 0.5))
        self.rectify, self.clip = nn.ReLU(), nn.Hardtanh(0.0, 1.0)

    @torch.no_grad()
    def start(self, query: Tensor) -> None:
        """Half open in the mean, and within its slope for most images."""
        gain, offset = spread_out(self._mean(query), (0,) if self.axis == -2 else (0, 2), 0.5, SPREAD)
        self.gain.copy_(gain)
        self.offset.copy_(offset)

    def no_weight_decay(self) -> set[str]:
        """As timm's models have it."""
        return {"gain", "offset"}

    def forward(self, query: Tensor) -> Tensor:
        """``[B, heads, N, width]`` to ``[B, heads, 1, width]`` or ``[B, heads, N, 1]``."""
        gate: Tensor = self.clip(self._mean(query) * self.gain + self.offset)
        return gate

    def _mean(self, query: Tensor) -> Tensor:
        mean: Tensor = self.rectify(query).mean(self.axis, keepdim=True)
        return mean


class QKGate(Term):
    """a ⊙ v, with a gate a for each token or each channel.

    Attributes:
        axis: that the gate is the same along.
    """

    reads = ("query", "value")
    queries = ("gate.rectify",)
    axis: ClassVar[int]

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        self.gate = Gate(size.heads, size.channels // size.heads if self.axis == -2 else 1, self.axis)

    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """Half open."""
        self.gate.start(read["query"])

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """Gate the value."""
        gated: Tensor = self.gate(read["query"]) * read["value"]
        return gated


@term("qk-token")
class QKTokenGate(QKGate):
    """A gate for each head and token, from the mean over channels. No token sees another."""

    mixes_tokens = False
    axis = -1


@term("qk-channel")
class QKChannelGate(QKGate):
    """A gate for each channel, from the mean over tokens."""

    axis = -2


@term("qk-mixed")
class QKMixedGate(Term):
    """The first half of the heads as `QKTokenGate`, the others as `QKChannelGate`.

    Raises:
        ModelError: there is only one head.
    """

    reads = ("query", "value")
    queries = ("token.rectify", "channel.rectify")

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        if size.heads < 2:
            raise ModelError("mixed Q-K attention needs at least 2 heads, got 1", "choose qk-channel or qk-token")
        self.cut = size.heads // 2
        self.token = Gate(self.cut, 1, -1)
        self.channel = Gate(size.heads - self.cut, size.channels // size.heads, -2)

    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """Half open."""
        self.token.start(read["query"][:, : self.cut])
        self.channel.start(read["query"][:, self.cut :])

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """Gate the value, head by head."""
        query, value = read["query"], read["value"]
        by_token = self.token(query[:, : self.cut]) * value[:, : self.cut]
        return torch.cat([by_token, self.channel(query[:, self.cut :]) * value[:, self.cut :]], 1)


@term("sdsa")
class SpikeDrivenGate(Term):
    """a ⊙ v,  a = clip(gain ⊙ mean_tokens (relu(q) ⊙ relu(k)) + offset, 0, 1): a gate for each channel.

    Yao et al., "Spike-driven Transformer", NeurIPS 2023: a mask from sums of products of two maps' spikes, on the third. That
    one passes to the output, so here it is the ANN's value.
    """

    reads = ("query", "key", "value")
    queries = ("rectify_query",)

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        shape = size.heads, 1, size.channels // size.heads
        self.gain, self.offset = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.full(shape, 0.5))
        self.rectify_query, self.rectify_key, self.clip = nn.ReLU(), nn.ReLU(), nn.Hardtanh(0.0, 1.0)

    @torch.no_grad()
    def start(self, attention: Tensor, read: Read, wanted: Tensor) -> None:
        """Half open in the mean, and within its slope for most images."""
        gain, offset = spread_out(self._mean(read), (0,), 0.5, SPREAD)
        self.gain.copy_(gain)
        self.offset.copy_(offset)

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """Gate the value."""
        gate = self.clip(self._mean(read) * self.gain + self.offset)
        gated: Tensor = gate * read["value"]
        return gated

    def _mean(self, read: Read) -> Tensor:
        mean: Tensor = (self.rectify_query(read["query"]) * self.rectify_key(read["key"])).mean(-2, keepdim=True)
        return mean
