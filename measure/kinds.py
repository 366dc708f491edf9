"""What the values that reach an operation are, as observed: the difference between a spike and a number."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..tracing.decoded import EXACT

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


def join(first: Kind, second: Kind) -> Kind:
    """The least kind that holds both: of what was seen at two times, what the operation has to expect."""
    return next(kind for kind, held in _BELOW.items() if {first, second} <= held)


def observe(values: Tensor) -> Kind:
    """The least kind that all ``values`` (any shape) are of, up to one constant factor, which folds into weights.

    * ``silent``: all are zero.
    * ``binary``: one magnitude and one sign; ``ternary``: one magnitude, both signs.
    * ``integer``: whole numbers, as they are: so many spikes.
    * ``power-of-two``: c 2^-k; ``geometric``: c 2^(-k/m) for an m of up to 8. Receivers shift stored versions of a weight.
    * ``analog``: anything else.
    """
    present = values[values != 0]
    if not len(present):
        return "silent"
    magnitudes = present.abs() if present.dtype != torch.bool else present.float()
    least, most = torch.aminmax(magnitudes)
    if least == most:
        return "ternary" if torch.aminmax(present).min != torch.aminmax(present).max else "binary"
    if most < EXACT and torch.equal(magnitudes, magnitudes.round()):
        return "integer"
    octaves = (magnitudes / most).double().log2()
    for m in range(1, FINEST + 1):
        if bool(((octaves * m - (octaves * m).round()).abs() < 1e-4).all()):
            return "power-of-two" if m == 1 else "geometric"
    return "analog"


def spikes_in(values: Tensor) -> Tensor | None:
    """How many spikes each of ``values`` (any shape) is, if they are spikes up to one constant factor; None for numbers.

    An integer n is |n| spikes, and a value of the only magnitude there is one.
    """
    if values.dtype == torch.bool:
        return values.float()
    if not values.numel():
        return values
    sample = values.flatten()[:4096].abs()
    if not torch.equal(sample, sample.round()) and len(sample[sample != 0].unique()) > 1:
        return None  # most numbers are told by their first few
    least, most = torch.aminmax(values)
    most = torch.maximum(most, -least)
    magnitudes = values.abs() if least < 0 else values
    if most < EXACT and torch.equal(magnitudes, magnitudes.trunc()):
        return magnitudes
    present = magnitudes != 0
    return present.to(values.dtype) if torch.equal(magnitudes, present * most) else None


def spikes_of(values: Tensor) -> Tensor | None:
    """See `spikes_in`; what several operations read is looked at once."""
    if not hasattr(values, "spikes"):
        values.spikes = spikes_in(values)  # type: ignore[attr-defined]
    found: Tensor | None = values.spikes  # type: ignore[attr-defined]
    return found
