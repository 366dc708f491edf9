"""Spiking attention: each takes spikes and gives currents, and is a branch of a shortcut (see `shortcut`).

All share one form, with N a neuron and q, k, v binary spikes ``[T * B, heads, C / heads, tokens]``:

    q, k, v = N(BN(W x));   y = mix(q, k, v);   out = BN(W_o y)

and differ in ``mix``, which multiplies spikes by spikes and needs no softmax. What follows ``mix`` reads its spikes; the
currents ``out`` become binary spikes in the neuron of a SEW shortcut, or are added as they are by a membrane shortcut.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .membrane import NeuronFactory
from .projection import ConvBN, SpikingProjection

ATTENTION_THRESHOLD = 0.5  # of the neuron behind the product; all other neurons of the literature have 1


class SpikingAttention(nn.Module):
    """The common form. Input spikes or integers ``[T * B, C, H, W]``, output currents of the same shape.

    Args:
        dim: channels C.
        num_heads: heads, which divide C.
        neuron: makes all neurons N; takes ``threshold``.
        bias: whether W of q, k and v has a bias (batch normalisation makes it redundant).
        out_bias: whether W_o has.
        interaction: acts on the query's spikes ``[T * B, heads, C / heads, tokens]``, such as `TemporalInteraction`.

    Raises:
        ModelError: the heads do not divide the channels.
    """

    has_value = True

    def __init__(
        self, dim: int, num_heads: int, neuron: NeuronFactory, bias: bool = False, out_bias: bool = True,
        interaction: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ModelError(f"{num_heads} heads do not divide a width of {dim}", "choose num_heads that divides embed_dim")
        self.num_heads = num_heads
        self.query = SpikingProjection(dim, dim, neuron, bias=bias)
        self.key = SpikingProjection(dim, dim, neuron, bias=bias)
        self.value = SpikingProjection(dim, dim, neuron, bias=bias) if self.has_value else None
        self.interaction = interaction or nn.Identity()
        self.out = ConvBN(dim, dim, bias=out_bias)

    def heads(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to ``[T * B, heads, C / heads, tokens]``."""
        by_head: Tensor = x.flatten(2).unflatten(1, (self.num_heads, -1))
        return by_head

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What this attention does with the spikes of query, key and value, ``[T * B, heads, C / heads, tokens]``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to currents of the same shape."""
        q, k = self.interaction(self.heads(self.query(x))), self.heads(self.key(x))
        v = k if self.value is None else self.heads(self.value(x))
        mixed = self.mix(q, k, v).flatten(1, 2).unflatten(2, x.shape[2:])
        currents: Tensor = self.out(mixed)
        return currents


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

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Full attention between tokens."""
        spikes: Tensor = self.neuron(attend(q, k, v) * self.scale)
        return spikes


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """v kᵀ q, the softmax-free attention of spikes, by the cheaper of its two orders: both give the same integers.

    Args:
        q: ``[..., D, tokens]``.
        k: ``[..., D, tokens]``.
        v: ``[..., C, tokens]``.

    Returns:
        ``[..., C, tokens]``.
    """
    tokens, width = q.shape[-1], q.shape[-2]
    if tokens > width:
        return (v @ k.transpose(-1, -2)) @ q
    return v @ (k.transpose(-1, -2) @ q)


class QKTokenAttention(SpikingAttention):
    """QKTA: a = N_½(Σ_d q), one bit for each head and token;  y = a ⊙ k. Both binary; linear in tokens, and it mixes none.

    Zhou et al., "QKFormer: Hierarchical Spiking Transformer using Q-K Attention", NeurIPS 2024.
    """

    has_value = False
    axis = -2

    def __init__(self, dim: int, num_heads: int, neuron: NeuronFactory, **common: object) -> None:
        super().__init__(dim, num_heads, neuron, **common)  # type: ignore[arg-type]
        self.neuron = neuron(threshold=ATTENTION_THRESHOLD)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mask the key."""
        masked: Tensor = self.neuron(q.sum(self.axis, keepdim=True)) * k
        return masked


class QKChannelAttention(QKTokenAttention):
    """QKCA: a = N_½(Σ_tokens q), one bit for each channel;  y = a ⊙ k. Both binary; linear in tokens.

    From the QKFormer paper. The bit of a channel depends on all tokens, so tokens are mixed.
    """

    axis = -1


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

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mask the key, head by head."""
        half = self.num_heads // 2
        by_token = self.token_neuron(q[:, :half].sum(-2, keepdim=True)) * k[:, :half]
        by_channel = self.channel_neuron(q[:, half:].sum(-1, keepdim=True)) * k[:, half:]
        return torch.cat([by_token, by_channel], 1)


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
