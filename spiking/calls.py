"""Calls of torch functions in the ``forward`` of a module: seen as they are made, and driven by neurons.

A module that multiplies two activations, or that meets a weight without a module for it, keeps its code. While it runs, a
torch function mode hands the operands of these calls through neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import ModelError

WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "addmm"}
FUSED = {"scaled_dot_product_attention"}
MATRIX = {"matmul", "rmatmul", "bmm", "mm", "baddbmm", "einsum"}
ELEMENTWISE = {"mul", "mul_", "rmul", "imul", "multiply", "addcmul"}
IN_PLACE = {"mul_", "imul"}
SYNAPTIC = WEIGHTED | FUSED | MATRIX | ELEMENTWISE


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among ``values`` and in the lists, tuples and dictionaries among them, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found


def function_name(function: Callable[..., Any]) -> str:
    """Its name, as ``mul`` also for the operator ``__mul__``; with a colon in it for operators of libraries (torch.ops)."""
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(function).replace(".", "::")
    name = getattr(function, "__name__", "")
    return name[2:-2] if name.startswith("__") else name


class Calls(TorchFunctionMode):
    """Within its context, sees the calls of torch functions, and which module's own ``forward`` makes them.

    Attributes:
        stack: the modules whose ``forward`` has begun within the context and is not over, innermost last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[nn.Module] = []

    def __enter__(self) -> Calls:
        self.handles = register_module_forward_pre_hook(self.enter), register_module_forward_hook(self.leave)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self.handles:
            handle.remove()

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """A module is called."""
        self.stack.append(module)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module returns."""
        self.stack.pop()


@dataclass(frozen=True)
class DrivenCall:
    """One call that neurons drive.

    ``neurons`` are their names by the position of the operand among the tensors of the call; or ``attention`` is the name of
    the module that takes the place of the function.
    """

    function: str
    neurons: dict[int, str]
    attention: str = ""


class DrivenCalls(nn.Module):
    """Mixed into the class of a module by `drive`: its own ``forward``, some of whose calls of synaptic functions are driven.

    ``driven`` has them by their number among all `SYNAPTIC` calls that this ``forward`` makes.
    """

    driven: dict[int, DrivenCall]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own.

        Raises:
            ModelError: it makes other calls than those that were recorded.
        """
        with _Driver(self):
            return super().forward(*args, **kwargs)


class _Driver(Calls):
    def __init__(self, module: DrivenCalls) -> None:
        super().__init__()
        self.module = module
        self.made = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if self.stack or name not in SYNAPTIC:
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
    module.__class__ = _driven(type(module))  # type: ignore[arg-type]
    module.driven = calls  # type: ignore[assignment]
    return module


@cache
def _driven(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Spiking{kind.__name__}", (DrivenCalls, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
