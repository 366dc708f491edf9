"""Calls of torch functions in the ``forward`` of a module, replaced by modules."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn

from .calls import function_name
from .mixing import Mixed, OwnCalls, mix


class ReplacedCalls(Mixed):
    """Mixed into the class of a module by `replace`: its own ``forward``, some of whose calls are handed to modules.

    ``replaced`` has the names of the modules, by function and number among its calls in this ``forward``.
    """

    replaced: dict[tuple[str, int], str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own."""
        with _Replacer(self, sys._getframe()):
            return super().forward(*args, **kwargs)


class _Replacer(OwnCalls):
    def __init__(self, module: ReplacedCalls, frame: FrameType) -> None:
        super().__init__(frame)
        self.module = module
        self.made: Counter[str] = Counter()
        self.functions = {function for function, _ in module.replaced}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if name not in self.functions or not self.is_own():
            return func(*args, **kwargs)
        child = self.module.replaced.get((name, self.made[name]))
        self.made[name] += 1
        return func(*args, **kwargs) if child is None else self.module.get_submodule(child)(*args, **kwargs)


def replace(module: nn.Module, function: str, number: int, child: str) -> None:
    """Let ``module``, in place, hand a call of a function, and its arguments, to the submodule of that name."""
    if not isinstance(module, ReplacedCalls):
        mix(module, ReplacedCalls, type(module).__name__)
        module.replaced = {}  # type: ignore[assignment]
    module.replaced = {**module.replaced, (function, number): child}  # type: ignore[assignment, dict-item]
