"""Calls of torch functions in the ``forward`` of modules, seen as they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "addmm"}
FUSED = {"scaled_dot_product_attention"}
MATRIX = {"matmul", "rmatmul", "bmm", "mm", "baddbmm", "einsum"}
ELEMENTWISE = {"mul", "mul_", "rmul", "imul", "multiply", "addcmul"}
IN_PLACE = {"mul_", "imul"}
CHANGING = {"setitem", "iadd", "isub", "imul", "itruediv"}
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


def changes_first(name: str) -> bool:
    """Whether the function of that name changes its first tensor in place."""
    return name.endswith("_") or name in CHANGING


class Calls(TorchFunctionMode):
    """Within its context, and its thread, sees the calls of torch functions, and which module's own ``forward`` makes them.

    Args:
        network: whose modules are told apart; a module that is none of it belongs to the one that calls it.

    Attributes:
        stack: the modules of the network whose ``forward`` has begun within the context and is not over, innermost last.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.stack: list[nn.Module] = []
        self._thread = 0

    def __enter__(self) -> Calls:
        self.stack.clear()  # of a run that an exception has ended
        self._thread = get_ident()
        self.handles = [
            handle
            for module in self.network.modules()
            for handle in (module.register_forward_pre_hook(self._before), module.register_forward_hook(self._after))
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if get_ident() == self._thread:  # other threads may run the same modules
            self.enter(module, inputs)

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if get_ident() == self._thread:
            self.leave(module, inputs, output)

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
