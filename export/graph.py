"""A spiking network as a pure function of tensors: a whole run, or one timestep with the neurons' states."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..spiking import CodedNeuron, Neuron, SpikingNetwork, running_mean
from ..spiking.integers import store_integers
from ..spiking.time import Run, running
from .neurons import begun, graph_neuron

READOUT = "readout"
"""The state of networks that read out the mean of their logits: the sum so far."""


class State(NamedTuple):
    """One of the tensors that last from a timestep to the next.

    Attributes:
        name: of its neuron in the network.
        shape: of one image's state; ``[B, *shape]`` for B images.
    """

    name: str
    shape: tuple[int, ...]


class RunGraph(nn.Module):
    """A run of T timesteps: images to the readout after each, ``[T, B, classes]``.

    Args:
        network: converted, or of the zoo; it is copied.
        timesteps: T.

    Raises:
        ExportError: its layers begin one after another.
    """

    def __init__(self, network: SpikingNetwork, timesteps: int) -> None:
        super().__init__()
        if any(isinstance(module, CodedNeuron) and module.lag for module in network.network.modules()):
            raise ExportError(
                "a network whose layers begin one after another (spikes.schedule 'wavefront') is no graph yet",
                "export one of schedule 'stepwise' or 'layer-synchronous', such as --recipe ternary-synchronous",
            )
        self.network = _of_operators(network)
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``, or a frame for each timestep ``[T, B, C, H, W]``."""
        run = Run(self.timesteps, batch=x.shape[1 if x.ndim == 5 else 0])
        with running(run):
            logits = self.network.respond(x.flatten(0, 1) if x.ndim == 5 else torch.cat([x] * self.timesteps))
        logits = logits.unflatten(0, (self.timesteps, -1))
        return next(running_mean([logits])) if self.network.averages else logits


class StepGraph(nn.Module):
    """One timestep: images, the timestep and the states before it, to the readout after it and the states.

    At timestep 0 the states that are given count for nothing; they may be zeros.

    Args:
        network: converted, or of the zoo; it is copied.
        image: ``[1, C, H, W]``, from which the shapes of the states follow.

    Attributes:
        states: in the order in which they are given.

    Raises:
        ExportError: the network is layer-synchronous: it knows no timestep that all its layers share.
    """

    def __init__(self, network: SpikingNetwork, image: Tensor) -> None:
        super().__init__()
        if network.synchronous:
            raise ExportError(
                "a network whose layers wait for each other has no timesteps that they share, so one of them is no graph",
                "export the whole run: --timesteps T",
            )
        self.network: Any = _of_operators(network)
        run = Run(batch=1, last=False)
        with running(run), torch.no_grad():
            logits = self.network.respond(image)
        names = {module: name.removeprefix("network.") for name, module in self.network.named_modules()}
        parts = {module: _parts(state) for module, state in run.states.items()}
        self._neurons = [(module, len(tensors)) for module, tensors in parts.items()]
        self.states = [
            State(f"{names[module]}.{index}" if len(tensors) > 1 else names[module], tuple(tensor.shape[1:]))
            for module, tensors in parts.items()
            for index, tensor in enumerate(tensors)
        ]
        if self.network.averages:
            self.states.append(State(READOUT, tuple(logits.shape[1:])))

    def forward(self, x: Tensor, t: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The readout ``[B, classes]`` after timestep ``t``, and the states.

        Args:
            x: ``[B, C, H, W]``.
            t: the timestep, from 0 on; an integer without axes.
            states: ``[B, ...]`` each.
        """
        run, given = Run(batch=x.shape[0], elapsed=t, last=False), list(states)  # type: ignore[arg-type]
        for neuron, count in self._neurons:
            own, given = given[:count], given[count:]
            run.states[neuron] = own[0] if count == 1 else tuple(own)
        with running(run):
            logits: Tensor = self.network.respond(x)
        after = [tensor for neuron, _ in self._neurons for tensor in _parts(run.states[neuron])]
        if not self.network.averages:
            return logits, after
        total = begun(t, torch.zeros_like(logits), given[0]) + logits
        return total / (t + 1), [*after, total]


def _parts(state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state


def _of_operators(network: SpikingNetwork) -> Any:
    """A copy in evaluation mode, whose neurons are of ordinary operators."""
    copied: Any = copy.deepcopy(network)
    copied = copied.cpu().float().eval().requires_grad_(False)
    for name, module in list(copied.named_modules()):
        if isinstance(module, Neuron) and not _is_within(copied, name):
            copied.set_submodule(name, graph_neuron(name, module))
    store_integers(copied)
    return copied


def _is_within(network: nn.Module, name: str) -> bool:
    """Whether a module is a part of a neuron."""
    above = name.rpartition(".")[0]
    while above:
        if isinstance(network.get_submodule(above), Neuron):
            return True
        above = above.rpartition(".")[0]
    return False
