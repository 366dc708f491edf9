"""The one registry of kinds of branches: names, as models of the zoo and searches have them, to classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from ...errors import ModelError
from .base import Branch

Place = Literal["attention", "mlp"]
B = TypeVar("B", bound=type[Branch])

_KINDS: dict[str, dict[str, type[Branch]]] = {"attention": {}, "mlp": {}}


def branch(place: Place, kind: str) -> Callable[[B], B]:
    """Register a class as a kind of what may take the place of a block's ``attention`` or ``mlp``::

        @branch("attention", "ssa")
        class SpikingSelfAttention(SpikingAttention): ...

    `vit2snn.zoo.AutoST` and its search spaces know it from then on. A later registration of a name replaces an earlier one.
    """

    def register(found: B) -> B:
        _KINDS[place][kind] = found
        return found

    return register


def kinds(place: str) -> tuple[str, ...]:
    """The names of all kinds, in the order of their registration."""
    return tuple(_KINDS[place])


def find(place: str, kind: str) -> type[Branch]:
    """The class of a kind.

    Raises:
        ModelError: there is none; the hint lists the names.
    """
    known = _KINDS[place]
    if kind not in known:
        raise ModelError(f"there is no {place} {kind!r}", f"choose one of {', '.join(known)}")
    return known[kind]
