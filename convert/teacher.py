"""The ANN that a network was made of: a teacher beside it, and no part of it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron


class Teacher:
    """A frozen copy of an ANN, in evaluation mode. It is no module, so a network that holds one does not count it among its
    parameters, move it, or train it.

    Args:
        ann: is not changed.

    Attributes:
        ann: on whatever device it computed on last.
    """

    def __init__(self, ann: nn.Module) -> None:
        self.ann = copy.deepcopy(ann).eval().requires_grad_(False)

    def on(self, device: torch.device) -> nn.Module:
        """The ANN, on a device."""
        return self.ann.to(device)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The logits ``[B, classes]`` of images ``[B, C, H, W]``, computed where they are, in the ANN's own precision."""
        dtype = next(self.ann.parameters()).dtype
        logits: Tensor = self.on(x.device)(x.to(dtype))
        return logits


def analog_copy(network: nn.Module) -> nn.Module:
    """A frozen copy of a converted network whose coded neurons pass their inputs through, for good."""
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, CodedNeuron):
            module.make_analog()
    return copied
