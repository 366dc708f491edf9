"""The plan of a conversion: what becomes of every module that does something to the signal, before anything is done."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from ..errors import ModelError, NothingConvertedError, RecipeError, UnsupportedModuleError
from ..spiking import Balanced, neurons
from ..tracing import Operation, record
from . import rules  # noqa: F401  (registers the built-in rules)
from .absorption import absorbed
from .anatomy import anatomy
from .blocks import BlockPlan, check_mixing, is_new, kinds_by_block, new_branches
from .branches import not_plain, transformer_blocks
from .lines import in_place, replaced_parts
from .membrane import fire
from .multihead import with_open_attention
from .recipe import Recipe
from .registry import handler_for, keep_analog
from .spikes import Membrane
from .structures import FIELDS
from .substitution import Substitution, substitute

Action = Literal["spiking", "analog", "ignored", "absorbed"]


@dataclass(frozen=True)
class PlannedModule:
    """One module: its class, what it computes, and its multiply-accumulates for one image.

    ``action`` is ``spiking`` (its synaptic operations will be driven by neurons), ``analog`` (it computes on real values),
    ``absorbed`` (it goes into weights or a neuron) or ``ignored`` (the recipe leaves it as it is). ``becomes`` is the membrane
    neuron that takes the place of a function. ``calls`` are the operations of its own ``forward``.
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

    ``absorbed`` has the modules that disappear, and the layers that they go into; ``left`` those with a softmax, an activation
    function or a norm that nothing takes the place of, whatever the recipe says.
    """

    modules: tuple[PlannedModule, ...]
    blocks: tuple[BlockPlan, ...] = ()
    left: tuple[str, ...] = ()
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

    def driven(self, name: str) -> PlannedModule | None:
        """A module that neurons will drive, and that no neuron takes the place of."""
        return next((m for m in self.modules if m.name == name and m.action == "spiking" and not m.becomes), None)

    def in_substitutes(self, name: str) -> bool:
        """Whether a module is in a substitute, or is the head behind one: where a recipe may have membrane neurons."""
        behind = name == "head" and bool(self.blocks) and is_new(self.blocks[-1].mlp)
        return behind or any(f"{name}.".startswith(f"{branch}.") for branch in new_branches(self.blocks))


def plan(model: nn.Module, recipe: Recipe, input_size: tuple[int, ...]) -> Plan:
    """Plan the conversion of ``model`` for images of ``input_size`` ``(C, H, W)``; neither weights nor data are needed.

    Raises:
        UnsupportedModuleError: a module computes on the signal and no rule covers it; all such modules are named.
        NothingConvertedError: no synaptic operation would be driven by neurons.
        ModelError: the model cannot be run, or is a spiking network already.
    """
    if any(neurons(model)):
        raise ModelError(f"{type(model).__name__} is a spiking network already", "convert the ANN it came from, or train it")
    model = with_open_attention(model, recipe)
    keeps = recipe.structure.attention == "softmax" and recipe.structure.mlp == "mlp"
    chosen = Substitution() if keeps else substitution(model, recipe, input_size)
    if recipe.structure.replaces:
        network: Any = copy.deepcopy(model)
        substitute(network, chosen, recipe.structure)
        if isinstance(recipe.spikes, Membrane):
            fire(network, chosen.blocks, recipe.spikes)
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
    return Plan(tuple(planned), chosen.blocks, chosen.left, pairs)


def substitution(model: nn.Module, recipe: Recipe, input_size: tuple[int, ...]) -> Substitution:
    """What the recipe makes of each block of a model whose `torch.nn.MultiheadAttention` is open.

    Raises:
        UnsupportedModuleError: the model has no blocks, or its blocks cannot become what the recipe says.
        RecipeError: the recipe names blocks that are not there, or no block would mix tokens.
    """
    if recipe.structure.undecided:
        raise RecipeError(
            "'auto' chooses the branches on calibration images, so there is no plan without them",
            "convert the model, and look at the result: vit2snn inspect OUT",
        )
    reason = not_plain(model)
    found = anatomy(model, input_size) if reason else None
    names = list(transformer_blocks(model)) if found is None else [block.name for block in found.blocks]
    if not names:
        raise UnsupportedModuleError(
            f"{type(model).__name__} has no block in which lines could take the place of a softmax or an activation function",
            "choose a recipe that keeps attention and mlp, such as faithful",
        )
    kinds = (kinds_by_block(field, getattr(recipe.structure, field), names) for field in FIELDS)
    plans = tuple(BlockPlan(*row) for row in zip(names, *kinds, strict=True))
    if found is None:
        check_mixing(plans)
        return Substitution(plans)
    plans = in_place(found, plans, recipe, reason)
    parts = tuple(replaced_parts(found, plans, recipe.structure))
    if recipe.structure.replaces and not parts:
        raise UnsupportedModuleError(
            f"the blocks that the recipe names have nothing in {type(model).__name__} that it would replace",
            "see what there is with: vit2snn inspect MODEL",
        )
    return Substitution(plans, parts, found.left)


def _planned(
    model: nn.Module, recipe: Recipe, operations: Sequence[Operation], pairs: dict[str, str]
) -> tuple[list[PlannedModule], list[tuple[str, nn.Module, list[Operation]]]]:
    """The modules that do something to the signal, and those of them that no rule covers."""
    modules = dict(model.named_modules(remove_duplicate=False))
    balanced = {name: module for name, module in modules.items() if isinstance(module, Balanced)}
    done: dict[str, list[Operation]] = {}
    for operation in operations:
        owner = next((name for name in balanced if operation.module.startswith(f"{name}.")), operation.module)
        done.setdefault(owner, []).append(operation)
    # Membrane neurons are the network's first ones; what they need of the image, the layer in front of them computes.
    sees_image = next((operation.module for operation in operations if operation.macs), None) if recipe.spike_driven else None
    planned, missing = [], []
    for name, own in done.items():
        handler = handler_for(modules[name])
        synaptic = any(operation.macs for operation in own)
        if recipe.ignores(name):
            action: Action = "ignored"
        elif name in pairs:
            action = "absorbed"
        elif name in balanced:
            action = "spiking"
        elif handler is None and any(operation.kind == "opaque" for operation in own):
            missing.append((name, modules[name], own))
            continue
        else:
            spiking = (handler or synaptic) and handler is not keep_analog and name != sees_image
            action = "spiking" if spiking else "analog"
        macs = 0 if action == "analog" and name != sees_image else sum(operation.macs for operation in own)
        functions = tuple(operation.function for operation in own)
        kind, becomes = type(modules[name]).__name__, ""
        if name in balanced:
            kind, becomes = type(balanced[name].function).__name__, type(balanced[name].neuron).__name__
        planned.append(PlannedModule(name, kind, functions, macs, action, becomes, tuple(own)))
    return planned, missing


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
