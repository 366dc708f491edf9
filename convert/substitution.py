"""Substitutes in place of a ViT's own attention, perceptrons and norms: structure as a stage before there are spikes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import LayerScale
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..spiking import Balanced, TemporalInteraction
from ..spiking.substitutes import (
    NORMS,
    Inherited,
    Own,
    RectifiedSoftmax,
    StaticNorm,
    SubstituteAttention,
    SubstituteMlp,
    substitute_mlp,
)
from .anatomy import Part
from .blocks import BlockPlan, is_new
from .branches import block_size, born_at, own_maps
from .lines import straighten
from .structures import Structure


@dataclass(frozen=True)
class Substitution:
    """What takes the place of what.

    Attributes:
        blocks: of the model, with the kinds of their branches.
        parts: of a model whose branches stay, those with functions that lines take the place of; none of a plain ViT.
        left: the modules in which there is a function that nothing takes the place of.
    """

    blocks: tuple[BlockPlan, ...] = ()
    parts: tuple[Part, ...] = ()
    left: tuple[str, ...] = ()


def substitute(network: Any, chosen: Substitution, structure: Structure) -> None:
    """Put substitutes in the places that were chosen for them, in place. They are not fitted yet.

    Raises:
        UnsupportedModuleError: the model reads its tokens by attention pooling, and the recipe another way.
    """
    if chosen.parts:
        straighten(network, chosen.parts, structure)
    else:
        exchange(network, chosen.blocks, structure)


def exchange(network: VisionTransformer, plans: Sequence[BlockPlan], structure: Structure) -> None:
    """Put new branches in place of those that ``plans`` name, in place. They have the ANN's maps, and are not fitted yet.

    timm's blocks stay, x + attn(norm(x)), under their names; a LayerScale goes into the map that it scales. With norms of ours
    the last norm is one too, if the last block's perceptron is a substitute.

    Raises:
        UnsupportedModuleError: the model reads its tokens by attention pooling, and the recipe another way.
    """
    like, prefix = network.patch_embed.proj.weight, network.num_prefix_tokens
    new_norm = partial(NORMS[structure.norm], network.embed_dim) if structure.norm in NORMS else None
    norm = partial(new_norm, prefix) if new_norm else None
    for plan, block in zip(plans, network.blocks, strict=True):
        size = block_size(network, block)
        if is_new(plan.attention):
            _replace(block, ("attn", "norm1", "ls1"), "out", like, partial(SubstituteAttention, plan.attention, size), norm)
        if is_new(plan.mlp):
            _replace(block, ("mlp", "norm2", "ls2"), "reduce", like, partial(substitute_mlp, plan.mlp, size), norm)
    if new_norm and is_new(plans[-1].mlp):
        name = last_norm(network)
        setattr(network, name, born_at(like, partial(new_norm, 0 if name == "fc_norm" else prefix)))
    if structure.readout != "model":
        if network.attn_pool is not None:
            raise UnsupportedModuleError(
                "the model reads its tokens by attention pooling, whose readout is not replaced", "leave structure.readout out"
            )
        network.global_pool = "avg" if structure.readout == "mean" else "token"


def _replace(
    block: Block, names: tuple[str, str, str], last: str, like: Tensor,
    make: Callable[[], SubstituteAttention | SubstituteMlp], norm: Callable[[], StaticNorm] | None,
) -> None:  # fmt: skip
    """Put a substitute in place of a branch, and a norm in place of that in front of it; ``last`` is the map that is scaled."""
    part, in_front, scale = names
    maps = scaled(own_maps(getattr(block, part)), last, getattr(block, scale))
    made = born_at(like, make)
    made.inherit(maps)
    setattr(block, part, made)
    setattr(block, scale, nn.Identity())
    if norm is not None:
        setattr(block, in_front, born_at(like, norm))


def scaled(maps: Own, name: str, scale: nn.Module) -> dict[str, Inherited]:
    """The maps of a branch, one of them with the LayerScale behind it."""
    if not isinstance(scale, LayerScale):
        return dict(maps)
    gain: Tensor = scale.gamma.detach()
    own = maps[name]
    return {**maps, name: Inherited(own.weight * gain[:, None], own.bias * gain)}


def last_norm(model: VisionTransformer) -> str:
    """The name of the norm behind the last block: in front of the pooling, or behind it."""
    return "fc_norm" if isinstance(model.norm, nn.Identity) else "norm"


def is_new_parameter(network: nn.Module, name: str) -> bool:
    """Whether a parameter, given by its name in ``network``, starts from nothing of the ANN's, and so learns fast."""
    parts = name.split(".")
    owners = [network.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    if any(isinstance(owner, TemporalInteraction) for owner in owners):
        return True
    if isinstance(owners[-1], Balanced):
        return False
    if isinstance(owners[-1], (StaticNorm, RectifiedSoftmax)):
        return True
    for depth, owner in enumerate(owners):
        if isinstance(owner, SubstituteAttention):
            if parts[depth] != "terms":
                return False
            inherited: Any = owner.terms[parts[depth + 1]].inherited
            return parts[depth + 2] not in inherited
        if isinstance(owner, SubstituteMlp):
            return parts[depth] not in ("fc1", "fc2")
    return False
