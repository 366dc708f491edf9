"""Shift-only functions in place of a network's LayerNorm, softmax and GELU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm.layers as tl
from torch import nn

from ..errors import UnsupportedModuleError
from ..spiking import ShiftGELU, ShiftLayerNorm, ShiftSoftmax, SpikingDotProductAttention
from .blocks import BlockPlan
from .recipe import Recipe


def replace_functions(network: nn.Module, plans: Sequence[BlockPlan], recipe: Recipe) -> None:
    """Shift-only LayerNorm everywhere and GELU in the blocks that the recipe names, in place; softmax: see `replace_softmax`.

    Raises:
        UnsupportedModuleError: the perceptron of such a block has another activation function.
    """
    if recipe.structure.norm == "shift-layernorm":
        for name, module in list(network.named_modules()):
            if type(module) in (nn.LayerNorm, tl.LayerNorm):
                network.set_submodule(name, ShiftLayerNorm.of(module))
    for plan in plans:
        if plan.mlp != "shift-mlp":
            continue
        mlp: Any = network.get_submodule(f"{plan.name}.mlp")
        if not isinstance(mlp.act, (nn.GELU, tl.GELU, tl.GELUTanh)):
            raise UnsupportedModuleError(
                f"the perceptron of {plan.name} has the activation function {type(mlp.act).__name__}, and only GELU has a "
                "shift-only form",
                "keep this block's mlp",
            )
        exact = isinstance(mlp.act, tl.GELU) or getattr(mlp.act, "approximate", "tanh") == "none"
        mlp.act = ShiftGELU("none" if exact else "tanh")


def replace_softmax(network: nn.Module, plans: Sequence[BlockPlan]) -> None:
    """Shift-only softmax in the blocks that a plan names, whose attention has been opened for neurons already; in place."""
    for plan in plans:
        if plan.attention == "shift-softmax":
            for module in network.get_submodule(plan.name).modules():
                if isinstance(module, SpikingDotProductAttention):
                    module.softmax = ShiftSoftmax()
