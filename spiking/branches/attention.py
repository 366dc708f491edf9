"""The common form of spiking attention: spikes to currents, a branch of a shortcut (see `vit2snn.spiking.shortcut`).

All share it, with N a neuron and q, k, v binary spikes ``[T * B, heads, C / heads, tokens]``:

    q, k, v = N(BN(W x));   y = mix(q, k, v);   out = BN(W_o y)

and differ in ``mix``, which multiplies spikes by spikes and needs no softmax. What follows ``mix`` reads its spikes; the
currents ``out`` become binary spikes in the neuron of a SEW shortcut, or are added as they are by a membrane shortcut.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn

from ...errors import ModelError
from ..membrane import NeuronFactory
from ..projection import ConvBN, SpikingProjection
from .base import BlockSize, Branch, Widths
from .count import Counts, convolution, neurons, projection, together


class SpikingAttention(Branch):
    """The common form. Input spikes or integers ``[T * B, C, H, W]``, output currents of the same shape.

    A kind says what it does (`mix`), which neurons of its own stand behind products (`products`) and, where these are matrix
    products, what they cost (`matrix_products`).

    Attributes:
        has_value: whether there is a value; without one v is k.

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

    has_value: ClassVar[bool] = True

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

    @classmethod
    def for_maps(cls, widths: Widths, neuron: NeuronFactory, **options: Any) -> SpikingAttention:
        """Of the block's channels and heads."""
        return cls(widths.channels, widths.heads, neuron, **options)

    @classmethod
    def matrix_products(cls, size: BlockSize) -> Counts:
        """Of spikes by spikes; masks and sums need none."""
        return Counts()

    @classmethod
    def count(cls, size: BlockSize) -> Counts:
        """Projections, neurons behind products, and output."""
        inputs = [projection(size.channels, size.channels, size.tokens, bias=True)] * (3 if cls.has_value else 2)
        behind = [neurons(prod(shape)) for shape in cls.products(size).values()]
        output = convolution(size.channels, size.channels, size.tokens, bias=True)
        return together([*inputs, cls.matrix_products(size), *behind, output])

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
