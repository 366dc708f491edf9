"""What a spiking network is asked while it is measured, be it converted from an ANN or trained as a spiking one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class SpikingNetwork(Protocol):
    """A network that reads out logits at every timestep. Converted networks and those of the zoo are such."""

    @property
    def network(self) -> nn.Module:
        """The module tree that computes, and that is metered."""

    @property
    def timesteps(self) -> int:
        """T that it was made for; 0 if it takes its timesteps from the frames of its input."""

    @property
    def synchronous(self) -> bool:
        """Whether layers wait for those before them, as in layer-synchronous networks and in wavefronts.

        A run of T is then no start of a longer one, and what is counted at a timestep is of a whole run of so many.
        """

    @property
    def channels_last(self) -> bool:
        """Whether it computes faster in `channels_last`."""

    @property
    def reference(self) -> nn.Module | None:
        """The module tree in which `ann` computes the ANN that it came from; None where there is none."""

    @property
    def compared(self) -> Mapping[str, str]:
        """Neurons or blocks, by name, that stand beside the ANN's, and the module that each belongs to."""

    @property
    def calibrated_on(self) -> tuple[str, ...]:
        """Digests of images that must not be scored (see `vit2snn.data.digest`)."""

    def readout(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Tensor:
        """The logits that can be read after each timestep, ``[T, B, classes]``; every call starts from rest.

        Args:
            x: images ``[B, C, H, W]``, or frames ``[T, B, C, H, W]``.
            timesteps: T; `timesteps` unless given.
            chunk: timesteps computed at once.
        """

    def stream(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Iterator[Tensor]:
        """The same chunk by chunk, ``[chunk, B, classes]``; whoever has seen enough may stop."""

    @property
    def averages(self) -> bool:
        """Whether the mean of the logits so far is read out, or the logits themselves."""

    def respond(self, frames: Tensor) -> Tensor:
        """The logits ``[T * B, classes]`` of frames ``[T * B, C, H, W]``, within a `vit2snn.spiking.time.Run`."""

    def ann(self, x: Tensor) -> Tensor | None:
        """The ANN's logits ``[B, classes]``; None where there is no ANN."""

    def exit_limits(self, confidence: float) -> Tensor:
        """How sure the readout has to be to stop after each timestep, ``[T]``, so that such a share of images keeps its class.

        Raises:
            ModelError: the network has no calibration of exits.
            ValueError: the confidence is not between 0 and 1.
        """


def running_mean(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The mean of all timesteps so far, at each timestep: chunks ``[chunk, B, ...]`` to such chunks."""
    total: Tensor | float = 0.0
    done = 0
    for chunk in chunks:
        sums = total + chunk.cumsum(0)
        count = torch.arange(done + 1, done + len(chunk) + 1, device=chunk.device).reshape(-1, *[1] * (chunk.ndim - 1))
        yield sums / count
        total, done = sums[-1], done + len(chunk)


@contextmanager
def evaluating(network: SpikingNetwork) -> Iterator[None]:
    """Within this context a network and its ANN are in evaluation mode; afterwards each module is in its own mode again."""
    trees = [tree for tree in (network.network, network.reference) if tree is not None]
    modes = {module: module.training for tree in trees for module in tree.modules()}
    try:
        for tree in trees:
            tree.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Within this context the convolutions of a model compute on maps with their channels last, which is faster on CPUs.

    Neurons keep the format of what they get, and logits are the same up to rounding; gradients are not where pools choose among
    equal values. Afterwards weights are as safetensors wants them: channels first.
    """
    model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        model.to(memory_format=torch.contiguous_format)
