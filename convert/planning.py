"""The plan of a conversion: what becomes of every module that does something to the signal, before anything is done."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from ..errors import ModelError, NothingConvertedError, RecipeError, UnsupportedModuleError
from ..spiking import SpikingNorm, TokenBranch, neurons
from ..tracing import Operation, record
from . import rules  # noqa: F401  (registers the built-in rules)
from .absorption import absorbed
from .blocks import BlockPlan, check_mixing, kinds_by_block
from .branches import transformer_blocks
from .recipe import Recipe
from .registry import handler_for, keep_analog
from .spike_driven import restructure
from .structures import FIELDS
from .substitution import substitute

Action = Literal["spiking", "analog", "ignored", "absorbed"]


@dataclass(frozen=True)
class PlannedModule:
    """One module: its class, what it computes, and its multiply-accumulates for one image.

    ``action`` is ``spiking`` (its synaptic operations will be driven by neurons), ``analog`` (it computes on real values),
    ``absorbed`` (it goes into weights or a neuron) or ``ignored`` (the recipe leaves it as it is). ``becomes`` is the class
    that takes its place in a spiking branch. ``calls`` are the operations of its own ``forward``.
    """

    name: str
    type: str
    operations: tuple[str, ...]
    macs: int
    action: Action
    becomes: str = ""
    calls: tuple[Operation, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Plan:
    """The modules in order of execution, and the blocks where the recipe gives them other branches than their own.

    ``absorbed`` has the modules that disappear, and the layers that they go into.
    """

    modules: tuple[PlannedModule, ...]
    blocks: tuple[BlockPlan, ...] = ()
    absorbed: dict[str, str] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the synaptic operations of one image, attention included."""
        return sum(module.macs for module in self.modules)

    @property
    def first(self) -> str:
        """The module that sees the image: the first one with a synaptic operation."""
        return next(module.name for module in self.modules if module.macs)

    def action(self, name: str) -> str | None:
        """The action planned for a module; None where nothing is."""
        return next((module.action for module in self.modules if module.name == name), None)

    def coded(self, name: str) -> PlannedModule | None:
        """A module that coded neurons will drive: it keeps its function, and is not part of a spiking branch."""
        return next((m for m in self.modules if m.name == name and m.action == "spiking" and not m.becomes), None)


def plan(model: nn.Module, recipe: Recipe, input_size: tuple[int, ...]) -> Plan:
    """Plan the conversion of ``model`` for images of ``input_size`` ``(C, H, W)``; neither weights nor data are needed.

    Raises:
        UnsupportedModuleError: a module computes on the signal and no rule covers it; all such modules are named.
        NothingConvertedError: no synaptic operation would be driven by neurons.
        ModelError: the model cannot be run, or is a spiking network already.
    """
    if any(neurons(model)):
        raise ModelError(f"{type(model).__name__} is a spiking network already", "convert the ANN it came from, or train it")
    if recipe.spike_driven:
        return _spike_driven_plan(model, recipe, input_size)
    blocks = () if recipe.structure.attention == "softmax" and recipe.structure.mlp == "mlp" else block_plans(model, recipe)
    if recipe.substitutes:
        network: Any = copy.deepcopy(model)
        substitute(network, blocks, recipe.structure)
        model = network
    operations = record(model, input_size)
    pairs = absorbed(model, operations, recipe)
    planned, missing = _planned(model, recipe, operations, pairs)
    if missing:
        raise _unsupported(model, missing)
    if not any(module.action == "spiking" for module in planned):
        raise NothingConvertedError(
            f"nothing in {type(model).__name__} would be converted",
            "see what a plan covers with: vit2snn inspect MODEL",
        )
    return Plan(tuple(planned), blocks, pairs)


def block_plans(model: nn.Module, recipe: Recipe) -> tuple[BlockPlan, ...]:
    """What the recipe makes of each block of a ViT.

    Raises:
        UnsupportedModuleError: the model is no ViT.
        RecipeError: the recipe names blocks that are not there, or no block would mix tokens.
    """
    names = list(transformer_blocks(model))
    if recipe.structure.undecided:
        raise RecipeError(
            "'auto' chooses the branches on calibration images, so there is no plan without them",
            "convert the model, and look at the result: vit2snn inspect OUT",
        )
    kinds = (kinds_by_block(field, getattr(recipe.structure, field), names) for field in FIELDS)
    plans = tuple(BlockPlan(*row) for row in zip(names, *kinds, strict=True))
    check_mixing(plans)
    return plans


def _spike_driven_plan(model: nn.Module, recipe: Recipe, input_size: tuple[int, ...]) -> Plan:
    """The restructured network's modules: each spiking branch is one, under the name of what it takes the place of."""
    blocks = block_plans(model, recipe)
    network: Any = copy.deepcopy(model)
    restructure(network, blocks, recipe)
    planned, missing = _planned(network, recipe, record(network, input_size), {})
    if missing:
        raise _unsupported(model, missing)
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    first = next(module.name for module in planned if module.macs)
    rows = []
    for module in planned:
        action: Action = "analog" if module.name == first else module.action
        kind, becomes = types.get(module.name, module.type), module.becomes
        if module.name == "head":
            becomes = module.type  # fed by the spikes of the last norm
        rows.append(dataclasses.replace(module, type=kind, action=action, becomes=becomes))
    return Plan(tuple(rows), blocks)


def _planned(
    model: nn.Module, recipe: Recipe, operations: Sequence[Operation], pairs: dict[str, str]
) -> tuple[list[PlannedModule], list[tuple[str, nn.Module, list[Operation]]]]:
    """The modules that do something to the signal, and those of them that no rule covers."""
    modules = dict(model.named_modules(remove_duplicate=False))
    branches = {name: module for name, module in modules.items() if isinstance(module, (TokenBranch, SpikingNorm))}
    done: dict[str, list[Operation]] = {}
    for operation in operations:
        owner = next((name for name in branches if operation.module.startswith(f"{name}.")), operation.module)
        done.setdefault(owner, []).append(operation)
    planned, missing = [], []
    for name, own in done.items():
        handler = handler_for(modules[name])
        synaptic = any(operation.macs for operation in own)
        if recipe.ignores(name):
            action: Action = "ignored"
        elif name in pairs:
            action = "absorbed"
        elif name in branches:
            action = "spiking"
        elif handler is None and any(operation.kind == "opaque" for operation in own):
            missing.append((name, modules[name], own))
            continue
        else:
            action = "analog" if handler is keep_analog or not (handler or synaptic) else "spiking"
        macs = 0 if action == "analog" else sum(operation.macs for operation in own)
        functions = tuple(operation.function for operation in own)
        becomes = _class_of(branches[name]) if name in branches else ""
        planned.append(PlannedModule(name, type(modules[name]).__name__, functions, macs, action, becomes, tuple(own)))
    return planned, missing


def _class_of(module: nn.Module) -> str:
    if isinstance(module, SpikingNorm):
        return f"{type(module.norm).__name__} + {type(module.neuron).__name__}"
    return type(module.branch).__name__


def _unsupported(model: nn.Module, missing: list[tuple[str, nn.Module, list[Operation]]]) -> UnsupportedModuleError:
    shown = [
        f"{name or '(the model itself)'} ({type(module).__name__}: {', '.join(sorted({o.function for o in done}))})"
        for name, module, done in missing[:3]
    ]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    kind = type(missing[0][1]).__name__
    return UnsupportedModuleError(
        f"{type(model).__name__} has modules that no rule converts: {'; '.join(shown)}{more}",
        f"register a handler with @vit2snn.converts({kind}), or leave it analog with the recipe's 'ignore' patterns",
    )
