"""What the values that reach an operation are, as observed: the difference between a spike and a number."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..spiking.alphabet import is_at_hand
from ..tracing.decoded import EXACT, fires

Kind = Literal["silent", "binary", "ternary", "integer", "power-of-two", "geometric", "analog"]

FINEST = 8  # of the geometric ladders that are told from real numbers, 2^(1/8)
_BELOW: dict[Kind, set[Kind]] = {
    "silent": {"silent"},
    "binary": {"silent", "binary"},
    "ternary": {"silent", "binary", "ternary"},
    "integer": {"silent", "binary", "ternary", "integer"},
    "power-of-two": {"silent", "binary", "ternary", "power-of-two"},
    "geometric": {"silent", "binary", "ternary", "power-of-two", "geometric"},
    "analog": {"silent", "binary", "ternary", "integer", "power-of-two", "geometric", "analog"},
}
"""Of each kind, those that it holds; in order, so that the first that holds two kinds is the least that does."""


KINDS = tuple(_BELOW)


def join(first: Kind, second: Kind) -> Kind:
    """The least kind that holds both: of what was seen at two times, what the operation has to expect."""
    return next(kind for kind, held in _BELOW.items() if {first, second} <= held)


def joined(seen: Tensor) -> Kind | None:
    """The least kind that holds all that were ``seen``, ``[KINDS]`` bool; None if none was."""
    kind: Kind | None = None
    for one, was_seen in zip(KINDS, seen.tolist(), strict=True):
        if was_seen:
            kind = join(kind or one, one)
    return kind


def observe(values: Tensor) -> Kind:
    """The least kind that all ``values`` (any shape) are of, up to one constant factor, which folds into weights.

    * ``silent``: all are zero.
    * ``binary``: one magnitude and one sign; ``ternary``: one magnitude, both signs.
    * ``integer``: whole numbers, as they are: so many spikes.
    * ``power-of-two``: c 2^-k; ``geometric``: c 2^(-k/m) for an m of up to 8. Receivers shift stored versions of a weight.
    * ``analog``: anything else.
    """
    kind = joined(kind_in(values))
    assert kind is not None
    return kind


def kind_in(values: Tensor) -> Tensor:
    """The same as ``[KINDS]`` bool, which nobody has to wait for: true for that kind."""
    if not values.numel():
        values = values.new_zeros(1)
    magnitudes = values.float() if values.dtype == torch.bool else values.abs()
    most, present = magnitudes.amax(), magnitudes != 0
    alike, has_one_sign = ((magnitudes == most) | ~present).all(), (values.amin() >= 0) | (values.amax() <= 0)
    whole = (most < EXACT) & (magnitudes == magnitudes.round()).all()
    octaves = torch.where(present, magnitudes / most, 1.0).double().log2().flatten()
    # What is on the grid of an m is on those of its multiples.
    steps = octaves * torch.arange(FINEST // 2 + 1, FINEST + 1, device=values.device)[:, None]
    shifts, geometric = ((grid - grid.round()).abs().amax(-1) < 1e-4 for grid in (octaves, steps))
    held = torch.stack([most == 0, alike & has_one_sign, alike, whole, shifts, geometric.any(), torch.ones_like(alike)])
    return held & (held.cumsum(0) == 1)


def counted(values: Tensor) -> tuple[Tensor, Tensor]:
    """How many spikes each of ``values`` (any shape) is, and whether that is so: a scalar, which nobody has to wait for.

    They are spikes if all are whole numbers, of which n is |n| spikes, or if all that are not 0 have one magnitude, which is
    then that of one spike. Numbers that are no spikes are counted as one each where they are not 0.
    """
    if values.dtype == torch.bool or not values.numel():
        return values.float(), torch.ones((), dtype=torch.bool, device=values.device)
    magnitudes = values.abs()
    most = magnitudes.amax()
    is_whole = (most < EXACT) & (magnitudes == magnitudes.trunc()).all()
    if is_at_hand(is_whole) and is_whole:  # which saves the rest
        return magnitudes, is_whole
    present = fires(values)
    return torch.where(is_whole, magnitudes, present), is_whole | (magnitudes == present * most).all()


def spikes_in(values: Tensor) -> Tensor | None:
    """How many spikes each of ``values`` (any shape) is, see `counted`; None for numbers."""
    spikes, are_spikes = counted(values)
    return spikes if are_spikes else None


def spikes_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """See `counted`; what several operations read is looked at once."""
    if not hasattr(values, "spikes"):
        values.spikes = counted(values)  # type: ignore[attr-defined]
    found: tuple[Tensor, Tensor] = values.spikes  # type: ignore[attr-defined]
    return found
