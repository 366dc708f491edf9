"""CUDA graphs: the kernels of a whole run are launched at once, as they were recorded, and Python takes no part in it.

With a batch of one image a GPU is done with a kernel before Python has launched the next. A neuron adds launches, so a spiking
network would cost what its launches cost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .network import SpikingNetwork
from .neuron import is_within_analog

WARM = 2  # runs before a recording: kernels are compiled, and constants put on the GPU
KEPT = 8  # recordings, each of which keeps the memory of a run


class Recording:
    """One run of a network, chunk by chunk.

    Args:
        network: that runs.
        x: an input of the shape and type of all that will be shown.
        timesteps: T.
        chunk: timesteps computed at once.
    """

    def __init__(self, network: SpikingNetwork, x: Tensor, timesteps: int | None, chunk: int | None) -> None:
        self._begun = 0  # replays
        # An inference tensor could not take the next input outside of inference mode, and weights that autocast has cast would
        # be gone when it is left.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cuda", *_autocast(), cache_enabled=False):
            self._input = x.clone()
            count = _warm_up(network, self._input, timesteps, chunk)
            self._chunks = list(_recorded(network.stream(self._input, timesteps, chunk), count))

    def replay(self, x: Tensor) -> Iterator[Tensor]:
        """What the network's ``stream`` gives for ``x``.

        Raises:
            ModelError: another replay has begun meanwhile, in the memory of this one.
        """
        self._begun = number = self._begun + 1
        with torch.inference_mode(False), torch.no_grad():
            self._input.copy_(x)
        for graph, output in self._chunks:
            if number != self._begun:
                raise ModelError(
                    "two replays of the same recording overlap",
                    "finish one stream before the next, or use two graphed(network)",
                )
            graph.replay()
            yield output.clone()


def _autocast() -> tuple[torch.dtype, bool]:
    return torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")


def _warm_up(network: SpikingNetwork, x: Tensor, timesteps: int | None, chunk: int | None) -> int:
    """The number of chunks. What is computed once for all is computed here, on a stream of its own, as torch demands."""
    present, beside = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)
    beside.wait_stream(present)
    with torch.cuda.stream(beside):
        outputs = [list(network.stream(x, timesteps, chunk)) for _ in range(WARM)]
    present.wait_stream(beside)
    return len(outputs[0])


def _recorded(run: Iterator[Tensor], count: int) -> Iterator[tuple[torch.cuda.CUDAGraph, Tensor]]:
    """The graph of each chunk, and where it leaves its output."""
    pool = torch.cuda.graph_pool_handle()
    for _ in range(count):
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                output = next(run)
        except torch.AcceleratorError as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"a run of the network cannot be recorded: {reason}", "run it without graphs") from error
        yield graph, output


class _State:
    """The tensors of a network, and how often they have been changed."""

    def __init__(self, network: nn.Module) -> None:
        self._places = [(m._parameters, m._buffers, m._modules) for m in network.modules()]
        self._kept = self._present()  # so that no other object can come to have the same identity

    def _present(self) -> tuple[list[Any], list[int]]:
        found = [x for places in self._places for place in places for x in place.values() if x is not None]
        return found, [x._version for x in found if isinstance(x, Tensor) and not x.is_inference()]

    def is_present(self) -> bool:
        """Whether these are the tensors still, unchanged."""
        (found, versions), (kept, then) = self._present(), self._kept
        return len(found) == len(kept) and all(map(is_, found, kept)) and versions == then


class Graphed:
    """A spiking network that is recorded when an input of some shape and type is shown first, and replayed from then on.

    Logits are those of the network, also after its weights or tables have changed: it is recorded anew then. It has all that
    the network has, computes without gradients, and on a CPU leaves all to the network.

    Args:
        network: in evaluation mode. What its forwards and hooks do on the host, they do while it is recorded only.
    """

    def __init__(self, network: SpikingNetwork) -> None:
        self.original = network
        self._recordings: OrderedDict[object, Recording] = OrderedDict()
        self._state: _State | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __call__(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Tensor:
        """As `readout`."""
        return self.readout(x, timesteps, chunk)

    def readout(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Tensor:
        """The logits that can be read after each timestep, ``[T, B, classes]``; see `SpikingNetwork.readout`.

        Raises:
            ModelError: the network is in training mode, or the host decides in it by what the GPU has computed.
        """
        return torch.cat(list(self.stream(x, timesteps, chunk)))

    def stream(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Iterator[Tensor]:
        """The same chunk by chunk, ``[chunk, B, classes]``; whoever has seen enough may stop."""
        if not can_record(x):
            with torch.no_grad():
                yield from self.original.stream(x, timesteps, chunk)
            return
        yield from self._recording(x, timesteps, chunk).replay(x)

    def _recording(self, x: Tensor, timesteps: int | None, chunk: int | None) -> Recording:
        network = self.original.network
        if network.training:
            raise ModelError("the network is in training mode, and a recording repeats one run", "call eval() before")
        if self._state is None or not self._state.is_present():
            self._recordings.clear()
            self._state = _State(network)
        key = x.shape, x.dtype, x.device, timesteps, chunk, _autocast(), is_within_analog()
        if key not in self._recordings:
            self._recordings[key] = Recording(self.original, x, timesteps, chunk)
            if len(self._recordings) > KEPT:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        return self._recordings[key]


def graphed(network: SpikingNetwork) -> Graphed:
    """A network whose runs are replayed as CUDA graphs: where launches take the time, as with one image at a time.

    Each shape and type of input, T and chunk is recorded once, which takes some runs, and keeps the memory of one; the last
    eight recordings are kept. Works with `vit2snn.measure.anytime`, and wherever logits are read; what counts spikes and
    operations has to see every call.
    """
    return Graphed(network)


def can_record(x: Tensor) -> bool:
    """Whether what is computed with ``x`` can be recorded: by GPUs of CUDA and ROCm."""
    return x.is_cuda
