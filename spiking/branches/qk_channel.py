"""Q-K channel attention."""

from __future__ import annotations

from .base import BlockSize
from .qk_token import QKTokenAttention
from .registry import branch


@branch("attention", "qk-channel")
class QKChannelAttention(QKTokenAttention):
    """QKCA: a = N_½(Σ_tokens q), one bit for each channel;  y = a ⊙ k. Both binary; linear in tokens.

    From the QKFormer paper. The bit of a channel depends on all tokens, so tokens are mixed.
    """

    axis = -1

    @classmethod
    def products(cls, size: BlockSize) -> dict[str, tuple[int, int, int]]:
        """A bit for each channel."""
        return {"neuron": (size.heads, size.channels // size.heads, 1)}
