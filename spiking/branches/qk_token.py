"""Q-K token attention."""

from __future__ import annotations

from torch import Tensor

from ..membrane import NeuronFactory
from .attention import SpikingAttention
from .base import ATTENTION_THRESHOLD, BlockSize
from .registry import branch


@branch("attention", "qk-token")
class QKTokenAttention(SpikingAttention):
    """QKTA: a = N_½(Σ_d q), one bit for each head and token;  y = a ⊙ k. Both binary; linear in tokens, and it mixes none.

    Zhou et al., "QKFormer: Hierarchical Spiking Transformer using Q-K Attention", NeurIPS 2024.
    """

    has_value = False
    axis = -2

    def __init__(self, dim: int, num_heads: int, neuron: NeuronFactory, **common: object) -> None:
        super().__init__(dim, num_heads, neuron, **common)  # type: ignore[arg-type]
        self.neuron = neuron(threshold=ATTENTION_THRESHOLD)

    @classmethod
    def products(cls, size: BlockSize) -> dict[str, tuple[int, int, int]]:
        """A bit for each head and token."""
        return {"neuron": (size.heads, 1, size.tokens)}

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mask the key."""
        masked: Tensor = self.neuron(q.sum(self.axis, keepdim=True)) * k
        return masked
