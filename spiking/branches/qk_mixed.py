"""Q-K attention by token and by channel in one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ModelError
from ..membrane import NeuronFactory
from .attention import SpikingAttention
from .base import ATTENTION_THRESHOLD, BlockSize
from .registry import branch


@branch("attention", "qk-mixed")
class QKMixedAttention(SpikingAttention):
    """The first half of the heads as `QKTokenAttention`, the second half as `QKChannelAttention`. Binary throughout.

    QKFormer mixes the two by stage (in its ablation; ``attention=`` of the zoo's `QKFormer`); this mixes them in one layer.

    Raises:
        ModelError: there is only one head.
    """

    has_value = False

    def __init__(self, dim: int, num_heads: int, neuron: NeuronFactory, **common: object) -> None:
        super().__init__(dim, num_heads, neuron, **common)  # type: ignore[arg-type]
        if num_heads < 2:
            raise ModelError("mixed Q-K attention needs at least 2 heads, got 1", "choose num_heads of 2 or more")
        self.token_neuron = neuron(threshold=ATTENTION_THRESHOLD)
        self.channel_neuron = neuron(threshold=ATTENTION_THRESHOLD)

    @classmethod
    def products(cls, size: BlockSize) -> dict[str, tuple[int, int, int]]:
        """A bit for each token in half of the heads, one for each channel in the others."""
        half, width = size.heads // 2, size.channels // size.heads
        return {"token_neuron": (half, 1, size.tokens), "channel_neuron": (size.heads - half, width, 1)}

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mask the key, head by head."""
        half = self.num_heads // 2
        by_token = self.token_neuron(q[:, :half].sum(-2, keepdim=True)) * k[:, :half]
        by_channel = self.channel_neuron(q[:, half:].sum(-1, keepdim=True)) * k[:, half:]
        return torch.cat([by_token, by_channel], 1)
