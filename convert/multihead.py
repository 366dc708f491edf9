"""torch's multi-head attention, opened into calls that neurons can be put in front of."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from ..spiking.layers import twin
from .recipe import Recipe
from .registry import handler_for


class OpenMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` in evaluation mode, with its arguments and parameters: linear maps around fused attention.

    Images lie along the first axis of what it computes with, whatever ``batch_first`` is. The weights of attention are never
    returned. Shapes: as of the original.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = True,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """What it attends to, and None.

        Raises:
            ValueError: tokens are masked image by image.
        """
        if key_padding_mask is not None or (attn_mask is not None and attn_mask.dim() > 2):
            raise ValueError("nn.MultiheadAttention with a mask for each image is not converted")
        if attn_mask is not None and not attn_mask.is_floating_point():
            attn_mask = ~attn_mask.bool()  # here True masks, below it lets pass
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self._mapped(query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask)
        out = self.out_proj(attended.transpose(1, 2).flatten(2))
        return self._axes(out), None

    def _axes(self, x: Tensor) -> Tensor:
        """From the order of axes outside to images first, and back."""
        return x if self.batch_first else x.transpose(0, 1)

    def _mapped(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values ``[B, N, h * d]``: of one product where they are made of the same."""
        bias = self.in_proj_bias
        if query is key and key is value and self._qkv_same_embed_dim:
            return F.linear(self._axes(query), self.in_proj_weight, bias).chunk(3, -1)
        weights = self.in_proj_weight.chunk(3) if self._qkv_same_embed_dim else self._weights()
        biases = (None, None, None) if bias is None else bias.chunk(3)
        inputs = map(self._axes, (query, key, value))
        return tuple(F.linear(x, weight, b) for x, weight, b in zip(inputs, weights, biases, strict=True))

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight


def open_attention(network: nn.Module, recipe: Recipe) -> nn.Module:
    """Put the opened form in place of every ``nn.MultiheadAttention`` without a handler, in place; gives what takes its place.

    Not of those that the recipe ignores, or that add tokens of their own.
    """
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if _is_closed(module) and not recipe.ignores(name):
            opened = twin(module, OpenMultiheadAttention)
            if not name:
                return opened
            network.set_submodule(name, opened)
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # without it, torch has no fused path that would pass neurons by
    return network


def with_open_attention(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A copy with opened attention; the model itself where there is nothing to open."""
    return open_attention(copy.deepcopy(model), recipe) if any(map(_is_closed, model.modules())) else model


def _is_closed(module: nn.Module) -> bool:
    return (
        type(module) is nn.MultiheadAttention
        and handler_for(module) is None
        and module.bias_k is None
        and not module.add_zero_attn
    )
