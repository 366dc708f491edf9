"""Calls of torch functions in the ``forward`` of a module, driven by neurons.

A module that multiplies two activations, or that meets a weight without a module for it, keeps its code. While it runs, a
torch function mode hands the operands of these calls through neurons.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import ModelError
from .calls import IN_PLACE, SYNAPTIC, function_name
from .mixing import Mixed, OwnCalls, mix


@dataclass(frozen=True)
class DrivenCall:
    """One call that neurons drive.

    ``neurons`` are their names by the position of the operand among the tensors of the call; or ``attention`` is the name of
    the module that takes the place of the function.
    """

    function: str
    neurons: dict[int, str]
    attention: str = ""


class DrivenCalls(Mixed):
    """Mixed into the class of a module by `drive`: its own ``forward``, some of whose calls of synaptic functions are driven.

    ``driven`` has them by their number among all `SYNAPTIC` calls that this ``forward`` makes.
    """

    driven: dict[int, DrivenCall]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own.

        Raises:
            ModelError: it makes other calls than those that were recorded.
        """
        with _Driver(self, sys._getframe()):
            return super().forward(*args, **kwargs)


class _Driver(OwnCalls):
    """Drives the calls of one ``forward``."""

    def __init__(self, module: DrivenCalls, frame: FrameType) -> None:
        super().__init__(frame)
        self.module = module
        self.made = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name not in SYNAPTIC or not self.is_own():
            return func(*args, **kwargs)
        call = self.module.driven.get(self.made)
        self.made += 1
        if call is None:
            return func(*args, **kwargs)
        if call.function != name:
            raise ModelError(
                f"call {self.made} of {type(self.module).__name__} was {call.function} when recorded, and is {name} now: "
                "what its forward computes depends on more than the shape of its input",
                "write a handler for its class: @vit2snn.converts(...)",
            )
        if call.attention:
            return self.module.get_submodule(call.attention)(*args, **kwargs)
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for position, neuron in call.neurons.items():
            index = tensors[position]
            leaves[index] = self.module.get_submodule(neuron)(leaves[index])
            if name in IN_PLACE and index == tensors[0]:
                leaves[index] = leaves[index].clone()  # what a neuron puts out is also its state
        args, kwargs = tree_unflatten(leaves, structure)
        return func(*args, **kwargs)


def drive(module: nn.Module, calls: dict[int, DrivenCall]) -> nn.Module:
    """Make ``module``, which has the neurons as submodules, drive these calls; it keeps its identity and its attributes."""
    mix(module, DrivenCalls, f"Spiking{type(module).__name__}")
    module.driven = calls  # type: ignore[assignment]
    return module
