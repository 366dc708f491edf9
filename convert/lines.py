"""Lines in place of the softmax, the activation functions and the norms of any family, within the family's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedModuleError
from ..spiking import DotProductAttention
from ..spiking.substitutes import JOIN, NORMS, RectifiedSoftmax
from ..tracing import replace
from ..tracing.calls import FUSED
from .anatomy import Anatomy, Function, Part, Role
from .blocks import KEPT, BlockPlan, is_new
from .branches import INSTEAD, born_at
from .recipe import Recipe
from .structures import Structure

KINDS: Mapping[Role, str] = {"attention": "qk-relu", "mlp": "relu"}
"""What lines in place of functions make of a branch."""
GATED = ("experts", "emsa", "emsp")
"""Kinds with experts, which need a branch of their own."""


class Rectify(nn.ReLU):
    """max(x, 0), in place of a call of an activation function with whatever other arguments."""

    def forward(self, input: Tensor, *others: Any, **more: Any) -> Tensor:
        """Rectify the first one."""
        return super().forward(input)


def in_place(found: Anatomy, plans: Sequence[BlockPlan], recipe: Recipe, reason: str) -> tuple[BlockPlan, ...]:
    """The plans of a recipe as they can be carried out within the code of a family: each new branch is the one of `KINDS`.

    Raises:
        UnsupportedModuleError: the recipe asks for branches of their own; the message tells the ``reason`` why there are none.
    """
    structure = recipe.structure
    asked = {kind for plan in plans for kind in (*plan.attention.split(JOIN), plan.mlp)}
    for what, refused in {
        "membrane neurons need": recipe.spike_driven,
        "experts need": bool(asked & set(GATED)),
        "shift-only functions by block need": any("shift" in kind for kind in asked),
        f"the readout {structure.readout!r} needs": structure.readout != "model",
    }.items():
        if refused:
            raise UnsupportedModuleError(f"{what} a plain ViT: {reason}", INSTEAD)
    kept = {name: kinds[0] for name, kinds in KEPT.items()}
    shown = []
    for plan, block in zip(plans, found.blocks, strict=True):
        kinds = {
            role: (line if is_new(getattr(plan, role)) else getattr(plan, role)) if block.has(role) else kept[role]
            for role, line in KINDS.items()
        }
        shown.append(BlockPlan(plan.name, **kinds))
    return tuple(shown)


def replaced_parts(found: Anatomy, plans: Sequence[BlockPlan], structure: Structure) -> list[Part]:
    """The parts of a network in which functions are replaced, in order of execution, with those functions alone.

    A norm goes with the branch behind it in its block, or with the last one. Outside of blocks, norms go with the block before.
    """
    by_name = {plan.name: plan for plan in plans}
    parts = []
    for block in found.blocks:
        plan = by_name[block.name]
        new = {"attention": is_new(plan.attention), "mlp": is_new(plan.mlp)}
        chosen = [function for function in block.functions if _is_replaced(function, block, new, structure)]
        if chosen:
            parts.append(Part(block.name, tuple(chosen)))
    if structure.norm in NORMS:
        for function in found.loose:
            before = [block for block in found.blocks if block.functions[0].index < function.index] or [found.blocks[0]]
            plan = by_name[before[-1].name]
            if is_new(plan.attention) or is_new(plan.mlp):
                parts.append(Part(function.module, (function,), False))
    return sorted(parts, key=lambda part: part.functions[0].index)


def _is_replaced(function: Function, block: Part, new: dict[str, bool], structure: Structure) -> bool:
    if function.role != "norm":
        return new[function.role]
    branches = [other for other in block.functions if other.role != "norm"]
    behind = [other for other in branches if other.index > function.index] or branches[-1:]
    return structure.norm in NORMS and bool(behind) and new[behind[0].role]


def straighten(network: nn.Module, parts: Sequence[Part], structure: Structure) -> None:
    """Put lines in place of the functions of ``parts``, in place. They are not fitted yet."""
    like, prefix, tokens = next(network.parameters()), prefix_of(network), tokens_of(network)
    for function in (function for part in parts for function in part.functions):
        rows = prefix if tokens and function.shape[1 if function.role == "norm" else -2] == tokens else 0
        if function.role == "norm":
            channels = function.shape[function.dim]
            made: nn.Module = born_at(like, partial(NORMS[structure.norm], channels, rows, function.dim))
        elif function.role == "mlp":
            made = nn.ReLU() if function.whole else Rectify()
        else:
            made = _softmax(function, like, rows)
        if function.whole:
            network.set_submodule(function.module, made)
        else:
            network.get_submodule(function.module).add_module(_child(function), made)
            replace(network.get_submodule(function.module), function.function, function.number, _child(function))


def line_of(function: Function) -> str:
    """The name of the module that takes the place of a function."""
    return function.module if function.whole else f"{function.module}.{_child(function)}"


def _child(function: Function) -> str:
    return f"line_{function.function}_{function.number}"


def _softmax(function: Function, like: Tensor, rows: int) -> nn.Module:
    shape = function.shape  # of the queries, or of the scores
    heads = shape[-3] if len(shape) > 3 else 1
    softmax = born_at(like, partial(RectifiedSoftmax, heads, rows, function.dim))
    if function.function not in FUSED:
        return softmax
    whole = DotProductAttention()
    whole.softmax = softmax
    return whole


def prefix_of(model: nn.Module) -> int:
    """Tokens before the patches, as timm's models tell it."""
    found = getattr(model, "num_prefix_tokens", 0)
    return found if isinstance(found, int) else 0


def tokens_of(model: nn.Module) -> int:
    """All tokens of a model that has some before the patches; 0 of others."""
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", 0)
    return prefix_of(model) + patches if prefix_of(model) and isinstance(patches, int) else 0
