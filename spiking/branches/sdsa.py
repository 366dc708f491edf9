"""SDSA: spike-driven self-attention."""

from __future__ import annotations

from torch import Tensor, nn

from ..membrane import NeuronFactory
from .attention import SpikingAttention
from .base import ATTENTION_THRESHOLD, BlockSize
from .registry import branch


@branch("attention", "sdsa")
class SpikeDrivenSelfAttention(SpikingAttention):
    """SDSA: a = N_½(Σ_tokens k ⊙ v), one bit for each channel;  y = q ⊙ a. Both binary; masks and additions only.

    Yao et al., "Spike-driven Transformer", NeurIPS 2023.

    Args:
        dim: channels C.
        num_heads: heads; they matter only with ``pooled``.
        neuron: makes all neurons.
        pooled: the published variant for event data takes the maximum over 3x3 of k and v (positions) and of k ⊙ v and y
            (channels of a head by tokens).
        common: of `SpikingAttention`.
    """

    def __init__(self, dim: int, num_heads: int, neuron: NeuronFactory, pooled: bool = False, **common: object) -> None:
        super().__init__(dim, num_heads, neuron, **common)  # type: ignore[arg-type]
        self.neuron = neuron(threshold=ATTENTION_THRESHOLD)
        self.erode = nn.MaxPool2d(3, stride=1, padding=1) if pooled else nn.Identity()

    @classmethod
    def products(cls, size: BlockSize) -> dict[str, tuple[int, int, int]]:
        """A bit for each channel."""
        return {"neuron": (size.heads, size.channels // size.heads, 1)}

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mask the query by channel."""
        mask = self.neuron(self.erode(k * v).sum(-1, keepdim=True))
        masked: Tensor = self.erode(q * mask)
        return masked

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to currents of the same shape."""
        assert self.value is not None
        q = self.interaction(self.heads(self.query(x)))
        k, v = (self.heads(self.erode(projection(x))) for projection in (self.key, self.value))
        currents: Tensor = self.out(self.mix(q, k, v).flatten(1, 2).unflatten(2, x.shape[2:]))
        return currents
