"""Modules whose own ``forward`` is watched while it runs: a class that is mixed into their own."""

from __future__ import annotations

import sys
from functools import cache
from types import FrameType
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

MODULE_CALL = nn.Module._call_impl.__code__
"""The code that runs when a module is called, whichever its class."""


class OwnCalls(TorchFunctionMode):
    """Within its context, tells apart the calls that are made under a ``frame``, and in no module called from there."""

    def __init__(self, frame: FrameType) -> None:
        super().__init__()
        self.frame = frame

    def is_own(self) -> bool:
        """Whether the call that ``__torch_function__``, which asks, is handling is one of those.

        The frames tell it. Hooks would have to be registered for all threads, and would miss the end of a module that raises.
        """
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame is not self.frame:
            if frame.f_code is MODULE_CALL:
                return False
            frame = frame.f_back
        return frame is not None


def mix(module: nn.Module, mixin: type[Mixed], name: str) -> None:
    """Mix a class, which calls the ``forward`` of the next one, into that of ``module``; it keeps identity and attributes."""
    module.__class__ = _mixed(mixin, type(module), name)  # type: ignore[arg-type]


class Mixed(nn.Module):
    """What all such classes have: pickle cannot find a class that was made at run time; what it was made of, it can."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _made, _parts(type(self)), *super().__reduce_ex__(protocol)[2:]


@cache
def _mixed(mixin: type[nn.Module], kind: type[nn.Module], name: str) -> type[nn.Module]:
    return type(name, (mixin, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__, "made_of": (mixin, kind)})


def _parts(kind: type[nn.Module]) -> tuple[type[nn.Module], tuple[tuple[type[nn.Module], str], ...]]:
    """The class that others are mixed into, and those, innermost first, with the names that they make."""
    if "made_of" not in vars(kind):
        return kind, ()
    mixin, inner = vars(kind)["made_of"]
    base, mixins = _parts(inner)
    return base, (*mixins, (mixin, kind.__name__))


def _made(kind: type[nn.Module], mixins: tuple[tuple[type[nn.Module], str], ...]) -> nn.Module:
    """A module of that class with those mixed in, without its state."""
    for mixin, name in mixins:
        kind = _mixed(mixin, kind, name)  # type: ignore[arg-type]
    return kind.__new__(kind)
