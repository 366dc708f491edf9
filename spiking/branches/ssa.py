"""SSA: spiking self-attention."""

from __future__ import annotations

from torch import Tensor

from ..membrane import NeuronFactory
from .attention import SpikingAttention, attend
from .base import ATTENTION_THRESHOLD, BlockSize
from .count import Counts, products
from .registry import branch


@branch("attention", "ssa")
class SpikingSelfAttention(SpikingAttention):
    """SSA: y = N_½(q kᵀ v · scale). Inside, products of spikes are integers; y is binary.

    Zhou et al., "Spikformer: When Spiking Neural Network Meets Transformer", ICLR 2023.

    Args:
        dim: channels C.
        num_heads: heads.
        neuron: makes all neurons.
        scale: of the product; 0.125 in the literature whatever the width of a head.
        common: of `SpikingAttention`.
    """

    def __init__(self, dim: int, num_heads: int, neuron: NeuronFactory, scale: float = 0.125, **common: object) -> None:
        super().__init__(dim, num_heads, neuron, **common)  # type: ignore[arg-type]
        self.scale = scale
        self.neuron = neuron(threshold=ATTENTION_THRESHOLD)

    @classmethod
    def products(cls, size: BlockSize) -> dict[str, tuple[int, int, int]]:
        """One, for each channel and token."""
        return {"neuron": (size.heads, size.channels // size.heads, size.tokens)}

    @classmethod
    def matrix_products(cls, size: BlockSize) -> Counts:
        """Each head its own."""
        width = size.channels // size.heads
        return products(2 * size.channels * size.tokens**2, 2 * size.channels * width * size.tokens, size.tokens > width)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Full attention between tokens."""
        spikes: Tensor = self.neuron(attend(q, k, v) * self.scale)
        return spikes
