"""The plan of a conversion: what becomes of every module that does something to the signal, before anything is done."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from ..errors import ModelError, NothingConvertedError, UnsupportedModuleError
from ..spiking import neurons
from . import rules  # noqa: F401  (registers the built-in rules)
from .recipe import Recipe
from .record import Operation, record
from .registry import handler_for, keep_analog

Action = Literal["spiking", "analog", "ignored"]


@dataclass(frozen=True)
class PlannedModule:
    """One module: its class, what it computes, and its multiply-accumulates for one image.

    ``action`` is ``spiking`` (its synaptic operations will be driven by neurons), ``analog`` (it has none, and computes on
    decoded values) or ``ignored`` (the recipe leaves it as it is).
    """

    name: str
    type: str
    operations: tuple[str, ...]
    macs: int
    action: Action


@dataclass(frozen=True)
class Plan:
    """The modules in order of execution."""

    modules: tuple[PlannedModule, ...]

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


def plan(model: nn.Module, recipe: Recipe, input_size: tuple[int, ...]) -> Plan:
    """Plan the conversion of ``model`` for images of ``input_size`` ``(C, H, W)``; neither weights nor data are needed.

    Raises:
        UnsupportedModuleError: a module computes on the signal and no rule covers it; all such modules are named.
        NothingConvertedError: no synaptic operation would be driven by neurons.
        ModelError: the model cannot be run, or is a spiking network already.
    """
    if any(neurons(model)):
        raise ModelError(f"{type(model).__name__} is a spiking network already", "convert the ANN it came from, or train it")
    modules = dict(model.named_modules())
    operations: dict[str, list[Operation]] = {}
    for operation in record(model, input_size):
        operations.setdefault(operation.module, []).append(operation)
    planned, missing = [], []
    for name, done in operations.items():
        handler = handler_for(modules[name])
        if all(operation.kind == "scale" for operation in done):
            handler = keep_analog
        if any(fnmatchcase(name, pattern) for pattern in recipe.ignore):
            action: Action = "ignored"
        elif handler is None:
            missing.append((name, modules[name], done))
            continue
        else:
            action = "analog" if handler is keep_analog else "spiking"
        macs = 0 if action == "analog" else sum(operation.macs for operation in done)
        functions = tuple(operation.function for operation in done)
        planned.append(PlannedModule(name, type(modules[name]).__name__, functions, macs, action))
    if missing:
        raise _unsupported(model, missing)
    if not any(module.action == "spiking" for module in planned):
        raise NothingConvertedError(
            f"nothing in {type(model).__name__} would be converted",
            "see what a plan covers with: vit2snn inspect MODEL",
        )
    return Plan(tuple(planned))


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
