"""The one registry of conversion rules: module type to handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import nn

from ..spiking import Balanced, CodedNeuron


class NeuronFactory(Protocol):
    """Makes the recipe's neuron for an input whose channels lie along the given negative axes."""

    def __call__(self, axes: tuple[int, ...] = (-1,)) -> CodedNeuron | Balanced:
        """A new, uncalibrated neuron."""


Handler = Callable[[Any, NeuronFactory], nn.Module]
H = TypeVar("H", bound=Handler)

_HANDLERS: dict[type[nn.Module], Handler] = {}


def converts(*types: type[nn.Module]) -> Callable[[H], H]:
    """Register a handler for modules of exactly these types.

    A handler gets the module (a copy, its children converted already; it may change and return it) and a factory of
    neurons, and returns what takes the module's place::

        @converts(nn.Linear)
        def linear(module: nn.Linear, neuron: NeuronFactory) -> nn.Module:
            return nn.Sequential(neuron(), module)

    Modules without a handler need none where a neuron in front of each operand of their synaptic calls will do (see
    `vit2snn.convert.products.drive_operations`), or where they make no such call. `keep_analog` leaves a module as it is. A
    later registration for a type replaces an earlier one.
    """

    def register(handler: H) -> H:
        for kind in types:
            _HANDLERS[kind] = handler
        return handler

    return register


def handler_for(module: nn.Module) -> Handler | None:
    """The handler of the module's exact type: a subclass may compute something else."""
    return _HANDLERS.get(type(module))


def keep_analog(module: nn.Module, neuron: NeuronFactory) -> nn.Module:
    """The handler of modules that have no synaptic operation: they compute on decoded values, as they are."""
    return module


def own_handlers() -> set[str]:
    """Names of the classes that have a handler beside the built-in ones."""
    return {kind.__name__ for kind, handler in _HANDLERS.items() if handler.__module__ != f"{__package__}.rules"}
