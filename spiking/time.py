"""Time lives in the batch dimension, and only neurons know it.

A spiking network of ``T`` timesteps and ``B`` images is the ordinary network run on ``[T * B, ...]``. A neuron unfolds its
input to ``[T, B, ...]``, steps along ``T`` and folds again; every other module is stock PyTorch. Long runs are cut into
chunks of timesteps. All that lasts from one chunk to the next is in the `Run`, which neurons find in a context variable: each
thread has its own, and a run that begins within another hides it until it is over. Modules hold no state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


@dataclass(eq=False)
class Run:
    """A run of a network from rest, and its present chunk: the timesteps ``elapsed, ..., elapsed + timesteps - 1``.

    Attributes:
        timesteps: of the present chunk.
        elapsed: timesteps that are over.
        still: batch size of signals that do not change in time (a static image and what is computed from it before the
            first neuron): a neuron that sees a batch of this size shows it to itself at every timestep. None if the
            signals of all timesteps are folded into the batch from the start.
        batch: number of images, where it is known: a signal may hold several parts of each along its first axis, such as the
            windows of an image.
        last: whether the present chunk is the last one, so that no state is kept.
        whole: whether only the last timestep is read, and what is counted is that of the run as a whole (see
            `vit2snn.tracing.wavefront`).
        chunks: how many have begun.
        stepping: the timestep, where a neuron is computing its timesteps one by one (see `Neuron.advance`).
        states: of the neurons, at the end of the chunk before.
        calls: how often each of the modules that count them (see `vit2snn.spiking.InTurn`) was called in this chunk.
    """

    timesteps: int = 1
    elapsed: int = 0
    still: int | None = None
    batch: int | None = None
    last: bool = True
    whole: bool = False
    chunks: int = 0
    stepping: int | None = None
    states: dict[Neuron, Any] = field(default_factory=dict, repr=False)
    calls: Counter[nn.Module] = field(default_factory=Counter, repr=False)

    def begin(self, elapsed: int, timesteps: int, last: bool) -> None:
        """The next chunk."""
        self.elapsed, self.timesteps, self.last = elapsed, timesteps, last
        self.chunks += 1
        self.calls.clear()


_present: ContextVar[Run | None] = ContextVar("vit2snn_run", default=None)


def present_run() -> Run | None:
    """The run within which this is called; None where no network is being run."""
    return _present.get()


@contextmanager
def running(run: Run) -> Iterator[Run]:
    """Within this context, and this thread, ``run`` is the present one."""
    token = _present.set(run)
    try:
        yield run
    finally:
        _present.reset(token)


class FullPrecision(nn.Module):
    """A module whose tensors, and those of all within it, stay in float32 when the network gets half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FullPrecision:
        """As of every module (``to``, ``cuda``, ``half``, ...), but for half precision."""

        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in HALF else moved

        super()._apply(kept, recurse)  # type: ignore[no-untyped-call]
        return self


class Neuron(FullPrecision):
    """A module that sees time. Subclasses implement one timestep; the state of a run never survives into the next.

    Outside of a `Run` its input is a single timestep from rest. In a network of half precision it computes in float32 and keeps
    its own parameters and buffers in float32; only what it puts out has the network's type.

    Shapes: input and output ``[T * B, ...]``, time-major, where ``T`` is the number of timesteps of the present chunk; or
    input ``[B, ...]`` where that is still (see `Run`). Where each image has K parts, ``[T * B * K, ...]``, a timestep is
    ``[B, K, ...]``.
    """

    def step(self, t: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One timestep: input ``[B, ...]`` and state to output ``[B, ...]`` and next state; ``state`` is None at t = 0."""
        raise NotImplementedError

    def advance(self, frames: Tensor, state: Any, run: Run) -> tuple[Tensor, Any]:
        """The timesteps of a chunk: ``[T, B, ...]`` to ``[T, B, ...]`` and the state after them."""
        outputs = []
        for t, x in enumerate(frames, start=run.elapsed):
            run.stepping = t
            output, state = self.step(t, x, state)
            outputs.append(output)
        run.stepping = None
        return outputs[0].unsqueeze(0) if len(outputs) == 1 else torch.stack(outputs), state

    def takes_half(self, frames: Tensor, run: Run) -> bool:
        """Whether `advance` takes frames of half precision, and computes with them in float32 by itself."""
        return False

    def unfold(self, x: Tensor, run: Run) -> Tensor:
        """The input of a chunk as ``[T, B, ...]``.

        Raises:
            RuntimeError: the batch is not a multiple of the chunk's timesteps.
        """
        if x.shape[0] == run.still:
            return x.expand(run.timesteps, *x.shape)
        images = run.batch or 1
        if x.shape[0] % (run.timesteps * images):
            raise RuntimeError(
                f"a neuron got a batch of {x.shape[0]}, not a multiple of the {run.timesteps} timesteps of {images} images "
                "folded into it"
            )
        whole = run.batch is None or x.shape[0] == run.timesteps * images
        unfolded: Tensor = x.unflatten(0, (run.timesteps, -1) if whole else (run.timesteps, images, -1))
        return unfolded

    def forward(self, x: Tensor) -> Tensor:
        """Step through the timesteps of the present chunk.

        Raises:
            RuntimeError: the batch is not a multiple of the chunk's timesteps.
        """
        run = _present.get() or Run()
        frames, state = self.unfold(x, run), run.states.pop(self, None)
        in_half = x.dtype in HALF and not _is_autocast(x)
        if x.dtype in HALF and not (in_half and self.takes_half(frames, run)):
            frames = frames.float()
        outputs, state = self.advance(frames, state, run)
        if not run.last:
            run.states[self] = state
        outputs = outputs.reshape(-1, *x.shape[1:])
        return outputs.to(x.dtype) if in_half else outputs


def _is_autocast(x: Tensor) -> bool:
    """Whether operations on ``x`` choose their precision by themselves."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def ahead(frames: Tensor, steps: int) -> Tensor:
    """``[T, ...]`` seen so many timesteps later: the first are gone, and the last one stays."""
    steps = min(steps, len(frames) - 1)
    return torch.cat([frames[steps:], frames[-1:].expand(steps, *frames.shape[1:])]) if steps else frames


def neurons(network: nn.Module) -> Iterator[tuple[str, Neuron]]:
    """The neurons of a network with their names, in the order of ``named_modules``."""
    for name, module in network.named_modules():
        if isinstance(module, Neuron):
            yield name, module


def over_time(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a part of a network from rest on a signal of all timesteps, ``[T, B, ...]`` to ``[T, B, ...]``."""
    with running(Run(timesteps=len(x))):
        unfolded: Tensor = module(x.flatten(0, 1)).unflatten(0, (len(x), -1))
    return unfolded


def stream(
    network: Callable[[Tensor], Tensor], x: Tensor, timesteps: int, chunk: int | None = None, still: bool = False
) -> Generator[Tensor, None, None]:
    """Run a network from rest, chunk by chunk; whoever has seen enough may stop.

    Args:
        network: any map of ``[B, ...]`` to ``[B, ...]`` image by image.
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
    run = Run(batch=x.shape[1 if x.ndim == 5 else 0])  # len() is a number in exported graphs, and no symbol
    for start in range(0, timesteps, chunk or timesteps):
        count = min(chunk or timesteps, timesteps - start)
        run.begin(start, count, last=start + count == timesteps)
        if x.ndim == 5:
            frames = x[start : start + count].flatten(0, 1)
        elif still and count > 1:
            run.still, frames = run.batch, x
        else:
            run.still, frames = None, x.expand(count, *x.shape).flatten(0, 1)
        with running(run):
            output = network(frames)
        yield output.unflatten(0, (count, -1))


def simulate(
    network: Callable[[Tensor], Tensor], x: Tensor, timesteps: int, chunk: int | None = None, still: bool = False
) -> Tensor:
    """All timesteps of a run; see `stream` for the arguments and errors.

    Returns:
        The network's output at every timestep, ``[T, B, ...]``.
    """
    outputs = list(stream(network, x, timesteps, chunk, still))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
