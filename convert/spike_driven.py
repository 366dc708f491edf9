"""Spike-driven conversion: spiking branches in place of a ViT's own, fitted block by block on the calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..calibration import Moments, NormalEquations, Passage, Settling, reconstruct
from ..errors import UnsupportedModuleError
from ..spiking import BlockSize, Inherited, NeuronFactory, SpikingNorm, TokenBranch, analog, over_time
from ..spiking.branches.registry import for_tokens
from ..tracing import catching
from .blocks import BlockPlan, is_new
from .branches import block_size, born_at, inherited, neuron_of, own_maps, spiking_norm
from .precision import at_least_float32, full_precision, without_half
from .recipe import Recipe

HEAD_RIDGE = 0.02


def restructure(network: VisionTransformer, plans: Sequence[BlockPlan], recipe: Recipe) -> None:
    """Put untrained spiking branches in place of those that ``plans`` name, in place.

    With the membrane shortcut, timm's own block x + attn(norm(x)) is the spiking one: its norm ends in a neuron. With the SEW
    shortcut the embedding and the branches end in neurons instead.
    """
    neuron, channels, sew = neuron_of(recipe.membrane.neuron), network.embed_dim, recipe.membrane.shortcut == "sew"
    like = network.patch_embed.proj.weight
    for plan, block in zip(plans, network.blocks, strict=True):
        size = block_size(network, block)
        if is_new(plan.attention):
            block.attn = born_at(like, partial(_branch, "attention", plan.attention, size, neuron, sew))
            block.norm1 = nn.Identity() if sew else spiking_norm(block.norm1, recipe.structure.norm, channels, neuron, like)
            block.ls1 = nn.Identity()
        if is_new(plan.mlp):
            block.mlp = born_at(like, partial(_branch, "mlp", plan.mlp, size, neuron, sew))
            block.norm2 = nn.Identity() if sew else spiking_norm(block.norm2, recipe.structure.norm, channels, neuron, like)
            block.ls2 = nn.Identity()
    if sew:
        network.norm_pre = nn.Sequential(network.norm_pre, spiking_norm(nn.Identity(), "batchnorm", channels, neuron, like))
        network.norm = nn.Identity()
    else:
        network.norm = spiking_norm(_final_norm(network), recipe.structure.norm, channels, neuron, like)
    network.fc_norm = nn.Identity()
    network.head = _head(network)
    if recipe.structure.readout != "model":
        network.attn_pool = None
        network.global_pool = "avg" if recipe.structure.readout == "mean" else "token"
    elif network.attn_pool is not None:
        raise UnsupportedModuleError(
            "the model reads its tokens by attention pooling, which has no spiking form here",
            "choose the recipe's structure.readout 'mean'",
        )


def _branch(place: str, kind: str, size: BlockSize, neuron: NeuronFactory, sew: bool) -> TokenBranch:
    return TokenBranch(for_tokens(place, kind, size, neuron), neuron() if sew else None)


def _head(network: VisionTransformer) -> nn.Linear:
    """The head, with an offset; where the network ends in features, the map that gives them from spikes.

    Raises:
        UnsupportedModuleError: the model ends in something else.
    """
    head = network.head
    if type(network).forward_head is not VisionTransformer.forward_head or not isinstance(head, (nn.Linear, nn.Identity)):
        raise UnsupportedModuleError(
            f"this {type(network).__name__} does not end in one linear layer, the head that is fitted behind spiking branches",
            "give the model an nn.Linear (or nn.Identity) as its head, or choose a recipe that keeps attention and mlp",
        )
    if isinstance(head, nn.Linear) and head.bias is not None:
        return head
    own = _head_map(network)
    new = born_at(own.weight, lambda: nn.Linear(own.weight.shape[1], own.weight.shape[0]))
    new.weight.data.copy_(own.weight)
    new.bias.data.copy_(own.bias)
    return new


def _head_map(model: VisionTransformer) -> Inherited:
    """What the model's head computes."""
    if isinstance(model.head, nn.Linear):
        return inherited(model.head)
    like = model.patch_embed.proj.weight
    channels = model.num_features
    return Inherited(torch.eye(channels, dtype=like.dtype, device=like.device), like.new_zeros(channels))


def fit(
    network: VisionTransformer, ann: VisionTransformer, plans: Sequence[BlockPlan], recipe: Recipe,
    batches: Iterable[Tensor],
) -> None:  # fmt: skip
    """Let a restructured network inherit from its ANN, in order of execution, on images ``[B, C, H, W]``.

    The ANN, in evaluation mode, is only looked at. Where there is half precision, all is computed in float32.

    At each block the streams of both networks are held in memory, ``(T + 1) * N * C`` floats for each image, and what the ANN's
    branch reads and gives; all sums stream.
    """
    ann = full_precision(ann)
    with analog(), torch.no_grad(), without_half(network):
        streams, logits = _embedded(network, ann, recipe, batches)
        for plan, block, original in zip(plans, network.blocks, ann.blocks, strict=True):
            before = streams
            for kind, part in ((plan.attention, "attention"), (plan.mlp, "mlp")):
                streams = fit_branch(block, original, part, kind, recipe, streams)
            if recipe.structure.refit == "blocks" and (is_new(plan.attention) or is_new(plan.mlp)):
                with torch.enable_grad():
                    reconstruct(block, [stream for stream, _ in before], [after for _, after in streams])
                streams = [(over_time(block, stream), after) for (stream, _), (_, after) in zip(before, streams, strict=True)]
        _fit_head(network, ann, recipe, streams, logits)


def _embedded(
    network: VisionTransformer, ann: VisionTransformer, recipe: Recipe, batches: Iterable[Tensor]
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """The streams of both networks in front of the first block, and the ANN's logits."""
    streams, logits = [], []
    for images in map(at_least_float32, batches):
        with catching(ann.blocks[0]) as caught:
            logits.append(ann(images))
        streams.append((caught[0].expand(recipe.timesteps, *caught[0].shape), caught[0]))
    if recipe.membrane.shortcut == "sew":
        embedding = network.norm_pre[1]
        passages = [Passage(stream, ann_stream, ann_stream, ann_stream, ann_stream) for stream, ann_stream in streams]
        _settling(recipe, embedding).settle_norm(passages)
        streams = [(over_time(embedding, stream), ann_stream) for stream, ann_stream in streams]
    return streams, logits


def _settling(
    recipe: Recipe,
    norm: nn.Module,
    branch: TokenBranch | None = None,
    maps: dict[str, Inherited] | None = None,
) -> Settling:
    return Settling(
        norm if isinstance(norm, SpikingNorm) else None, branch or TokenBranch(nn.Identity()), maps or {},
        recipe.membrane.balance, recipe.membrane.rate, recipe.structure.refit != "none",
    )  # fmt: skip


def fit_branch(
    block: Block, original: Block, part: str, kind: str, recipe: Recipe, streams: list[tuple[Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Settle one branch on the streams of the spiking network ``[T, B, N, C]`` and the ANN ``[B, N, C]``; those behind it."""
    if part == "attention":
        norm, branch, scale = block.norm1, block.attn, block.ls1
        own, output, own_norm, own_scale = original.attn, original.attn.proj, original.norm1, original.ls1
    else:
        norm, branch, scale = block.norm2, block.mlp, block.ls2
        own, output, own_norm, own_scale = original.mlp, original.mlp.fc2, original.norm2, original.ls2
    passages = []
    for stream, before in streams:
        normed = own_norm(before)
        with catching(output) as caught:
            added = own_scale(own(normed))
        passages.append(Passage(stream, before, normed, caught[0], before + added))
    if not is_new(kind):
        return [(p.stream + over_time(lambda x: scale(branch(norm(x))), p.stream), p.after) for p in passages]
    settling = _settling(recipe, norm, branch, branch.branch.inherited(own_maps(own), original.attn.num_heads))
    settling.settle(passages)
    return [(p.stream + settling.run(p), p.after) for p in passages]


def _fit_head(
    network: VisionTransformer, ann: VisionTransformer, recipe: Recipe, streams: list[tuple[Tensor, Tensor]],
    logits: list[Tensor],
) -> None:  # fmt: skip
    """The last norm, and a head that gives the ANN's logits from the mean of the spikes over time."""
    final = _final_norm(ann)
    if isinstance(network.norm, SpikingNorm):
        passages = [Passage(stream, before, final(before), before, before) for stream, before in streams]
        _settling(recipe, network.norm).settle_norm(passages)
    read = [
        over_time(lambda x: network.forward_head(network.norm(x), pre_logits=True), stream).mean(0) for stream, _ in streams
    ]
    if recipe.structure.refit == "none":
        given, wanted = Moments(), Moments()
        for features, (_, before) in zip(read, streams, strict=True):
            given.update(features)
            wanted.update(ann.forward_head(ann.norm(before), pre_logits=True))
        head = _head_map(ann)
        ratio = (wanted.variance / given.variance.clamp(min=1e-12)).sqrt().to(head.weight)
        offset = wanted.mean.to(ratio) - ratio * given.mean.to(ratio)
        network.head.weight.data.copy_(head.weight * ratio)
        network.head.bias.data.copy_(head.bias + head.weight @ offset)
        return
    equations = NormalEquations()
    for features, target in zip(read, logits, strict=True):
        equations.update(features, target)
    weight, bias = equations.solve(HEAD_RIDGE)
    network.head.weight.data.copy_(weight)
    network.head.bias.data.copy_(bias)


def _final_norm(model: VisionTransformer) -> nn.Module:
    """The norm behind the last block, in front of the pooling or behind it."""
    norm: nn.Module = model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm
    return norm
