"""Time lives in the batch dimension, and only neurons know it.

A spiking network of ``T`` timesteps and ``B`` images is the ordinary network run on ``[T * B, ...]``. A neuron unfolds its
input to ``[T, B, ...]``, steps along ``T`` and folds again; every other module is stock PyTorch. Long runs are cut into
chunks of timesteps: the neurons of a network share a `Clock` that says which timesteps the present chunk holds, and carry
their state from one chunk to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Clock:
    """The timesteps of the chunk that is being computed: ``elapsed, ..., elapsed + timesteps - 1``."""

    elapsed: int = 0
    timesteps: int = 1


class Neuron(nn.Module):
    """A module that sees time. Subclasses implement one timestep; the state of a run never survives into the next.

    Shapes: input and output ``[T * B, ...]``, time-major, where ``T`` is the number of timesteps of the present chunk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.state: Tensor | None = None

    def step(self, t: int, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """One timestep: input ``[B, ...]`` and state to output ``[B, ...]`` and next state; ``state`` is None at t = 0."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Step through the timesteps of the present chunk.

        Raises:
            RuntimeError: the batch is not a multiple of the chunk's timesteps.
        """
        clock = self.clock
        if x.shape[0] % clock.timesteps:
            raise RuntimeError(
                f"a neuron got a batch of {x.shape[0]}, not a multiple of the {clock.timesteps} timesteps folded into it"
            )
        state = self.state if clock.elapsed else None
        outputs = []
        for offset, target in enumerate(x.unflatten(0, (clock.timesteps, -1))):
            output, state = self.step(clock.elapsed + offset, target, state)
            outputs.append(output)
        self.state = state
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).flatten(0, 1)


def neurons(network: nn.Module) -> Iterator[tuple[str, Neuron]]:
    """The neurons of a network with their names, in the order of ``named_modules``."""
    for name, module in network.named_modules():
        if isinstance(module, Neuron):
            yield name, module


def simulate(network: nn.Module, clock: Clock, x: Tensor, timesteps: int, chunk: int | None = None) -> Tensor:
    """Run a network whose neurons share ``clock`` for ``timesteps`` timesteps from rest.

    Args:
        network: any module that maps ``[B, ...]`` to ``[B, ...]`` image by image.
        clock: the clock of its neurons.
        x: static input ``[B, C, H, W]``, shown at every timestep, or one input for each timestep ``[T, B, C, H, W]``.
        timesteps: T, at least 1.
        chunk: how many timesteps are computed at once; None computes all. The result does not depend on it, memory does.

    Returns:
        The network's output at every timestep, ``[T, B, ...]``.

    Raises:
        ValueError: a number is below 1, or an input with a time axis has other than T timesteps.
    """
    if timesteps < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"timesteps and chunk must be at least 1, got timesteps={timesteps}, chunk={chunk}")
    if x.ndim == 5 and x.shape[0] != timesteps:
        raise ValueError(f"an input of {x.shape[0]} timesteps was given to a run of {timesteps} timesteps")
    outputs = []
    try:
        for start in range(0, timesteps, chunk or timesteps):
            clock.elapsed = start
            clock.timesteps = min(chunk or timesteps, timesteps - start)
            frames = x[start : start + clock.timesteps] if x.ndim == 5 else x.expand(clock.timesteps, *x.shape)
            outputs.append(network(frames.flatten(0, 1)).unflatten(0, (clock.timesteps, -1)))
    finally:
        clock.elapsed, clock.timesteps = 0, 1
        for _, neuron in neurons(network):
            neuron.state = None
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
