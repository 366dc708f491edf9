"""The end of a run as one pass, through which gradients flow.

What is read of a network after its last timestep follows from what its neurons have decoded by then: their last targets, and
the errors that their spikes have left. A pass of one timestep in which each neuron adds that error to what it sees computes the
very same, and its gradients are those of straight-through spikes. It costs what a pass of the ANN costs, whatever T is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Ending(NamedTuple):
    """What a neuron left in the last timestep of a run: its error, and whether its target was within reach, ``[B, ...]``."""

    error: Tensor
    reached: Tensor

    def added_to(self, target: Tensor) -> Tensor:
        """The decoded value for ``target`` ``[..., B, ...]``: no gradient for targets that spikes could not reach."""
        decoded = target + self.error
        return torch.where(self.reached, decoded, decoded.detach())


_present: ContextVar[Mapping[nn.Module, Ending]] = ContextVar("vit2snn_endings", default=MappingProxyType({}))


@contextmanager
def repeating(endings: Mapping[nn.Module, Ending]) -> Iterator[None]:
    """Within this context, and this thread, these neurons add their errors to what they see, and send no spikes."""
    token = _present.set(endings)
    try:
        yield
    finally:
        _present.reset(token)


def ending_of(neuron: nn.Module) -> Ending | None:
    """What a neuron repeats at present, if it does."""
    return _present.get().get(neuron)
