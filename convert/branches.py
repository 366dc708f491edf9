"""What substitutes need to know of a ViT: its blocks, their size, and the linear maps that they inherit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..spiking import BlockSize
from ..spiking.substitutes import Inherited, Own

M = TypeVar("M", bound=nn.Module)
INSTEAD = "choose a recipe with Q-K attention and coded neurons, such as qkformer, or one that keeps both branches, as faithful"
"""What to do where whole branches cannot be exchanged."""


def transformer_blocks(model: nn.Module) -> dict[str, Block]:
    """The blocks of a ViT by name.

    Raises:
        UnsupportedModuleError: the model is no VisionTransformer, or a block is of another kind than x + attn(norm(x)).
    """
    if not isinstance(model, VisionTransformer):
        raise UnsupportedModuleError(
            f"whole branches are exchanged in timm's VisionTransformer, got {type(model).__name__}", INSTEAD
        )
    blocks = {f"blocks.{index}": block for index, block in enumerate(model.blocks)}
    for name, block in blocks.items():
        if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
            parts = " and ".join(type(getattr(block, part, None)).__name__ for part in ("attn", "mlp"))
            raise UnsupportedModuleError(
                f"{name} is a {type(block).__name__} of {parts}; exchanged are timm's Attention and Mlp in a pre-norm Block",
                INSTEAD,
            )
        if block.attn.attn_dim != model.embed_dim:
            raise UnsupportedModuleError(
                f"the attention of {name} has {block.attn.attn_dim} channels in a stream of {model.embed_dim}", INSTEAD
            )
    return blocks


def not_plain(model: nn.Module) -> str:
    """Why the branches of a model cannot be exchanged as a whole, but only functions in them; empty if they can."""
    try:
        transformer_blocks(model)
    except UnsupportedModuleError as reason:
        return str(reason)
    return ""


def born_at(like: Tensor, make: Callable[[], M]) -> M:
    """What ``make`` makes, where ``like`` is and of its type; random numbers are drawn on the CPU, the same for all devices."""
    with torch.device("meta" if like.is_meta else "cpu"):
        made = make()
    return made.to(like.device, like.dtype)


def block_size(model: VisionTransformer, block: Block) -> BlockSize:
    """Of a block of a ViT."""
    grid = model.patch_embed.grid_size
    return BlockSize(model.embed_dim, block.attn.num_heads, block.mlp.fc1.out_features, grid, model.num_prefix_tokens)


def own_maps(branch: Attention | Mlp) -> Own:
    """The linear maps of an ANN's branch."""
    if isinstance(branch, Mlp):
        return {"expand": inherited(branch.fc1), "reduce": inherited(branch.fc2)}
    qkv = inherited(branch.qkv)
    thirds = zip(("query", "key", "value"), qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True)
    return {name: Inherited(weight, bias) for name, weight, bias in thirds} | {"out": inherited(branch.proj)}


def inherited(layer: nn.Linear) -> Inherited:
    """A layer's map, with an offset of 0 where it has none."""
    weight = layer.weight.detach()
    return Inherited(weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach())
