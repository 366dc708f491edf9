"""The spiking branches of a ViT block, built to its size, and what they inherit from its weights."""

from __future__ import annotations

import copy
from functools import partial

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..calibration import Inherited
from ..errors import UnsupportedModuleError
from ..spiking import (
    IF,
    NEURONS,
    Balanced,
    ExpertMixtureAttention,
    ExpertMixturePerceptron,
    GridConv2d,
    Neuron,
    NeuronFactory,
    QKChannelAttention,
    QKTokenAttention,
    SpikeDrivenSelfAttention,
    SpikingAttention,
    SpikingMLP,
    SpikingNorm,
    SpikingSelfAttention,
    TemporalInteraction,
)
from ..spiking.attention import ATTENTION_THRESHOLD
from .blocks import INTERACTION

ATTENTION: dict[str, type[SpikingAttention]] = {
    "ssa": SpikingSelfAttention,
    "qk-token": QKTokenAttention,
    "qk-channel": QKChannelAttention,
    "sdsa": SpikeDrivenSelfAttention,
}


def transformer_blocks(model: nn.Module) -> dict[str, Block]:
    """The blocks of a ViT by name.

    Raises:
        UnsupportedModuleError: the model is no VisionTransformer, or a block is of another kind than x + attn(norm(x)).
    """
    if not isinstance(model, VisionTransformer):
        raise UnsupportedModuleError(
            f"spiking branches take the places of the blocks of timm's VisionTransformer, got {type(model).__name__}",
            "choose a recipe that keeps attention and mlp, such as faithful",
        )
    blocks = {f"blocks.{index}": block for index, block in enumerate(model.blocks)}
    for name, block in blocks.items():
        if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
            parts = " and ".join(type(getattr(block, part, None)).__name__ for part in ("attn", "mlp"))
            raise UnsupportedModuleError(
                f"{name} is a {type(block).__name__} of {parts}; spiking branches take the places of timm's Attention and Mlp "
                "in a pre-norm Block",
                "choose a recipe that keeps attention and mlp, such as faithful",
            )
        if block.attn.attn_dim != model.embed_dim:
            raise UnsupportedModuleError(
                f"the attention of {name} has {block.attn.attn_dim} channels in a stream of {model.embed_dim}",
                "choose a recipe that keeps attention and mlp, such as faithful",
            )
    return blocks


def neuron_of(name: str) -> NeuronFactory:
    """The membrane neuron of a recipe; IF is reset softly and starts half-way, so that its rate is linear in its input."""
    return partial(IF, v_reset=None, v_start=0.5) if name == "if" else NEURONS[name]


def spiking_norm(norm: nn.Module, kind: str, channels: int, neuron: Neuron) -> SpikingNorm:
    """The norm in front of a spiking branch: a new batch normalisation, or a copy of the ANN's own norm."""
    return SpikingNorm(nn.BatchNorm2d(channels) if kind == "batchnorm" else copy.deepcopy(norm), neuron)


def spiking_attention(kind: str, model: VisionTransformer, block: Block, neuron: NeuronFactory) -> nn.Module:
    """The spiking attention of that kind, in the size of the block's own, on maps of N by 1 tokens."""
    dim, heads, tokens = model.embed_dim, block.attn.num_heads, token_count(model)
    interaction = TemporalInteraction(tokens) if kind.endswith(INTERACTION) else None
    kind = kind.removesuffix(INTERACTION)
    if kind == "emsa":
        width = dim // heads
        attention: nn.Module = ExpertMixtureAttention(dim, neuron, experts=heads, expert_dim=width, interaction=interaction)
        shape: tuple[int, ...] = (heads, dim, 1)
    else:
        attention = ATTENTION[kind](dim, heads, neuron, interaction=interaction)
        shape = (heads, 1 if kind == "qk-token" else dim // heads, 1)
    attention.neuron = Balanced(neuron(), shape)
    nn.init.constant_(attention.neuron.gain, 1 / ATTENTION_THRESHOLD)
    return attention


def spiking_mlp(kind: str, model: VisionTransformer, block: Block, neuron: NeuronFactory) -> nn.Module:
    """The spiking perceptron of that kind, with as many (gated) hidden channels as the block's own."""
    dim, hidden = model.embed_dim, block.mlp.fc1.out_features
    if kind == "spiking":
        return SpikingMLP(dim, hidden, neuron)
    perceptron = ExpertMixturePerceptron(dim, 2 * hidden, neuron)
    router = GridConv2d(hidden, 3, model.patch_embed.grid_size, model.num_prefix_tokens, groups=hidden)
    nn.init.dirac_(router.weight, groups=hidden)  # at first each channel is gated by itself alone
    perceptron.router.project.conv = router
    return perceptron


def inherited_attention(kind: str, attention: Attention) -> dict[str, Inherited]:
    """What the projections of spiking attention stand for."""
    weight, bias = attention.qkv.weight.detach(), attention.qkv.bias
    bias = torch.zeros(len(weight)).to(weight) if bias is None else bias.detach()
    query, key, value = (Inherited(w, b) for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
    kind = kind.removesuffix(INTERACTION)
    if kind == "emsa":
        queries, shared = shared_key(query.weight, key.weight, attention.num_heads)
        none = torch.zeros(len(queries) + len(shared)).to(weight)
        return {
            "query": Inherited(queries, none[: len(queries)]),
            "key": Inherited(shared, none[len(queries) :]),
            "value": value,
        }
    maps = {"query": query, "key": key, "value": value}
    # What passes to the output, masked or mixed, inherits the ANN's value.
    if kind == "sdsa":  # y = q ⊙ N(Σ k ⊙ v)
        maps = {"query": value, "key": key, "value": query}
    elif not ATTENTION[kind].has_value:  # y = N(Σ q) ⊙ k
        maps = {"query": query, "key": value}
    return maps


def shared_key(query: Tensor, key: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Queries of all heads ``[C, C]`` for one key ``[C / heads, C]``, in place of a key for each head.

    The scores of head i are xᵀ M_i x with M_i = Q_iᵀ K_i. The shared key consists of the leading right singular vectors V of
    all M_i stacked, the best such subspace in least squares, and the queries are Q_i' = (M_i V)ᵀ.

    Args:
        query: Q of all heads, ``[C, C]``.
        key: K of all heads, ``[C, C]``.
        heads: how many.
    """
    width = len(query) // heads
    scores = torch.einsum("hdi,hdj->hij", query.unflatten(0, (heads, -1)), key.unflatten(0, (heads, -1)))
    vectors = torch.linalg.eigh(torch.einsum("hij,hik->jk", scores, scores))[1][:, -width:]
    return torch.einsum("hij,jd->hdi", scores, vectors).flatten(0, 1), vectors.T.contiguous()


def inherited_mlp(kind: str, mlp: Mlp) -> dict[str, Inherited]:
    """What the first layer of a spiking perceptron stands for: it reads what the ANN's activation function makes of it."""
    copies = 1 if kind == "spiking" else 2
    weight, bias = mlp.fc1.weight.detach(), mlp.fc1.bias.detach()
    return {"expand": Inherited(weight.repeat(copies, 1), bias.repeat(copies), mlp.act)}


def token_count(model: VisionTransformer) -> int:
    """Tokens of the stream, class and register tokens included."""
    return int(model.patch_embed.num_patches + model.num_prefix_tokens)
