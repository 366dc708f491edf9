"""Half precision: what is learned from images is computed in float32, and rounded once it is known."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

from torch import Tensor, nn

from ..spiking.time import HALF

M = TypeVar("M", bound=nn.Module)


def at_least_float32(x: Tensor) -> Tensor:
    """In float32 if it has half precision, or as it is."""
    return x.float() if x.dtype in HALF else x


def full_precision(model: M) -> M:
    """A copy without tensors of half precision; the model itself where it has none."""
    if not _halves(model):
        return model
    widened = copy.deepcopy(model)
    _widen(widened)
    return widened


@contextmanager
def without_half(network: nn.Module) -> Iterator[None]:
    """Within this context the network has no half precision; afterwards its tensors are of the types that they had."""
    types = {name: tensor.dtype for name, tensor in _halves(network).items()}
    if types:
        _widen(network)
    yield
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if name in types:
            tensor.data = tensor.data.to(types[name])


def _widen(module: nn.Module) -> None:
    module._apply(at_least_float32)


def _halves(module: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in chain(module.named_parameters(), module.named_buffers()) if x.dtype in HALF}
