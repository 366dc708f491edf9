"""The one registry of kinds of branches: names, as recipes and models of the zoo have them, to classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from ...errors import ModelError
from ..interaction import TemporalInteraction
from ..membrane import NeuronFactory
from .base import BlockSize, Branch

Place = Literal["attention", "mlp"]
B = TypeVar("B", bound=type[Branch])

INTERACTION = "+tim"
"""Suffix of kinds whose query sees the timestep before."""

_KINDS: dict[str, dict[str, type[Branch]]] = {"attention": {}, "mlp": {}}


def branch(place: Place, kind: str) -> Callable[[B], B]:
    """Register a class as a kind of what may take the place of a block's ``attention`` or ``mlp``::

        @branch("attention", "ssa")
        class SpikingSelfAttention(SpikingAttention): ...

    Recipes, ``auto``, plans, `vit2snn.zoo.AutoST` and its search spaces know it from then on. A later registration of a name
    replaces an earlier one.
    """

    def register(found: B) -> B:
        _KINDS[place][kind] = found
        return found

    return register


def kinds(place: str) -> tuple[str, ...]:
    """The names of all kinds, without suffixes, in the order of their registration."""
    return tuple(_KINDS[place])


def spellings(place: str) -> tuple[str, ...]:
    """The names of all kinds, and those with the suffix of the ones that take a temporal interaction."""
    return kinds(place) + tuple(kind + INTERACTION for kind, found in _KINDS[place].items() if found.interacts)


def has_interaction(place: str, kind: str) -> bool:
    """Whether the name of a kind asks for a temporal interaction."""
    return kind not in _KINDS[place] and kind.endswith(INTERACTION)


def find(place: str, kind: str) -> type[Branch]:
    """The class of a kind; a suffix does not matter.

    Raises:
        ModelError: there is none; the hint lists the names.
    """
    known = _KINDS[place]
    if kind not in spellings(place):
        raise ModelError(f"there is no {place} {kind!r}", f"choose one of {', '.join(known)}")
    return known[kind.removesuffix(INTERACTION) if has_interaction(place, kind) else kind]


def for_tokens(place: str, kind: str, size: BlockSize, neuron: NeuronFactory) -> Branch:
    """A branch of that kind for a block of a converted ViT, with the temporal interaction that its name may ask for.

    Raises:
        ModelError: there is no such kind, or the block's size does not admit it.
    """
    made = find(place, kind).for_tokens(size, neuron)
    if has_interaction(place, kind):
        made.set_submodule("interaction", TemporalInteraction(size.tokens))
    return made


def admits(place: str, kind: str, size: BlockSize, neuron: NeuronFactory) -> bool:
    """Whether a block of that size can have a branch of that kind."""
    try:
        with torch.device("meta"):
            for_tokens(place, kind, size, neuron)
    except ModelError:
        return False
    return True
