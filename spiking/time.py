"""Time lives in the batch dimension, and only neurons know it.

A spiking network of ``T`` timesteps and ``B`` images is the ordinary network run on ``[T * B, ...]``. A neuron unfolds its
input to ``[T, B, ...]``, steps along ``T`` and folds again; every other module is stock PyTorch. Long runs are cut into
chunks of timesteps: the neurons of a network share a `Clock`, which says which timesteps the present chunk holds and keeps
the neurons' states from one chunk to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Clock:
    """The timesteps of the chunk that is being computed: ``elapsed, ..., elapsed + timesteps - 1``.

    Attributes:
        elapsed: timesteps of this run that are over.
        timesteps: of the present chunk.
        still: batch size of signals that do not change in time (a static image and what is computed from it before the
            first neuron): a neuron that sees a batch of this size shows it to itself at every timestep. None if the
            signals of all timesteps are folded into the batch from the start.
        batch: number of images, where it is known: a signal may hold several parts of each along its first axis, such as the
            windows of an image.
        last: whether the present chunk is the last one, so that no state is kept.
        passes: how often a network was run.
        stepping: the timestep, where a neuron is computing its timesteps one by one (see `Neuron.run`).
        states: of the neurons, at the end of the chunk before.
    """

    elapsed: int = 0
    timesteps: int = 1
    still: int | None = None
    batch: int | None = None
    last: bool = False
    passes: int = field(default=0, compare=False)
    stepping: int | None = None
    states: dict[Neuron, Any] = field(default_factory=dict, repr=False)

    def rest(self) -> None:
        """The run is over, whether it came to its end or not."""
        self.elapsed, self.timesteps, self.last = 0, 1, False
        self.still = self.batch = self.stepping = None
        self.states.clear()


class Neuron(nn.Module):
    """A module that sees time. Subclasses implement one timestep; the state of a run never survives into the next.

    Shapes: input and output ``[T * B, ...]``, time-major, where ``T`` is the number of timesteps of the present chunk; or
    input ``[B, ...]`` where that is still (see `Clock`). Where each image has K parts, ``[T * B * K, ...]``, a timestep is
    ``[B, K, ...]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()

    def step(self, t: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One timestep: input ``[B, ...]`` and state to output ``[B, ...]`` and next state; ``state`` is None at t = 0."""
        raise NotImplementedError

    def run(self, frames: Tensor, t: int, state: Any) -> tuple[Tensor, Any]:
        """The timesteps ``t, t + 1, ...`` of a chunk: ``[T, B, ...]`` to ``[T, B, ...]`` and the state after them."""
        outputs = []
        for offset, x in enumerate(frames):
            self.clock.stepping = t + offset
            output, state = self.step(t + offset, x, state)
            outputs.append(output)
        self.clock.stepping = None
        return outputs[0].unsqueeze(0) if len(outputs) == 1 else torch.stack(outputs), state

    def unfold(self, x: Tensor) -> Tensor:
        """The input of the present chunk as ``[T, B, ...]``; half precision becomes float32, in which neurons keep their state.

        Raises:
            RuntimeError: the batch is not a multiple of the chunk's timesteps.
        """
        clock = self.clock
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if x.shape[0] == clock.still:
            return x.expand(clock.timesteps, *x.shape)
        images = clock.batch or 1
        if x.shape[0] % (clock.timesteps * images):
            raise RuntimeError(
                f"a neuron got a batch of {x.shape[0]}, not a multiple of the {clock.timesteps} timesteps of {images} images "
                "folded into it"
            )
        whole = clock.batch is None or x.shape[0] == clock.timesteps * images
        unfolded: Tensor = x.unflatten(0, (clock.timesteps, -1) if whole else (clock.timesteps, images, -1))
        return unfolded

    def forward(self, x: Tensor) -> Tensor:
        """Step through the timesteps of the present chunk.

        Raises:
            RuntimeError: the batch is not a multiple of the chunk's timesteps.
        """
        clock = self.clock
        outputs, state = self.run(self.unfold(x), clock.elapsed, clock.states.pop(self, None) if clock.elapsed else None)
        if not clock.last:
            clock.states[self] = state
        return outputs.reshape(-1, *x.shape[1:])


def neurons(network: nn.Module) -> Iterator[tuple[str, Neuron]]:
    """The neurons of a network with their names, in the order of ``named_modules``."""
    for name, module in network.named_modules():
        if isinstance(module, Neuron):
            yield name, module


def share_clock(network: nn.Module) -> Clock:
    """Give all neurons of a network one new clock, and return it."""
    clock = Clock()
    for _, neuron in neurons(network):
        neuron.clock = clock
    return clock


def over_time(module: Callable[[Tensor], Tensor], clock: Clock, x: Tensor) -> Tensor:
    """Run a part of a network, whose neurons share ``clock``, from rest on a signal of all timesteps.

    ``[T, B, ...]`` to ``[T, B, ...]``.
    """
    try:
        clock.elapsed, clock.timesteps, clock.still, clock.last = 0, len(x), None, True
        unfolded: Tensor = module(x.flatten(0, 1)).unflatten(0, (len(x), -1))
        return unfolded
    finally:
        clock.rest()


def stream(
    network: Callable[[Tensor], Tensor],
    clock: Clock,
    x: Tensor,
    timesteps: int,
    chunk: int | None = None,
    still: bool = False,
) -> Generator[Tensor, None, None]:
    """Run a network whose neurons share ``clock`` from rest, chunk by chunk; whoever has seen enough may stop.

    Args:
        network: any map of ``[B, ...]`` to ``[B, ...]`` image by image.
        clock: the clock of its neurons.
        x: static input ``[B, C, H, W]``, shown at every timestep, or one input for each timestep ``[T, B, C, H, W]``.
        timesteps: T, at least 1.
        chunk: how many timesteps are computed at once; None computes all. The result does not depend on it, memory does.
        still: compute what comes before the first neurons once for all timesteps of a static input. For networks in which
            no path from the input goes around the neurons.

    Yields:
        The network's output at the timesteps of each chunk, ``[chunk, B, ...]``.

    Raises:
        ValueError: a number is below 1, or an input with a time axis has other than T timesteps.
    """
    if timesteps < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"timesteps and chunk must be at least 1, got timesteps={timesteps}, chunk={chunk}")
    if x.ndim == 5 and x.shape[0] != timesteps:
        raise ValueError(f"an input of {x.shape[0]} timesteps was given to a run of {timesteps} timesteps")
    clock.batch = x.shape[1] if x.ndim == 5 else len(x)
    try:
        for start in range(0, timesteps, chunk or timesteps):
            clock.elapsed = start
            clock.passes += 1
            clock.timesteps = min(chunk or timesteps, timesteps - start)
            clock.last = start + clock.timesteps == timesteps
            if x.ndim == 5:
                frames = x[start : start + clock.timesteps].flatten(0, 1)
            elif still and clock.timesteps > 1:
                clock.still, frames = len(x), x
            else:
                clock.still, frames = None, x.expand(clock.timesteps, *x.shape).flatten(0, 1)
            yield network(frames).unflatten(0, (clock.timesteps, -1))
    finally:
        clock.rest()


def simulate(
    network: Callable[[Tensor], Tensor],
    clock: Clock,
    x: Tensor,
    timesteps: int,
    chunk: int | None = None,
    still: bool = False,
) -> Tensor:
    """All timesteps of a run; see `stream` for the arguments and errors.

    Returns:
        The network's output at every timestep, ``[T, B, ...]``.
    """
    outputs = list(stream(network, clock, x, timesteps, chunk, still))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
