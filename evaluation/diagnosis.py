"""Which module broke it: the error of every coded neuron, or of every block of a spike-driven network, against the ANN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..convert import SpikingModel
from ..spiking import Event, SpikeCount, analog, counting_spikes, outputs_of, probing, simulate
from ..spiking.shards import total

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class ModuleError:
    """One neuron, or one block: relative error after each timestep, and spikes for each neuron in all timesteps together."""

    name: str
    module: str
    relative_error: list[float]
    spikes_per_neuron: float


@torch.no_grad()
def diagnose(snn: SpikingModel, images: Tensor, timesteps: int | None = None) -> list[ModuleError]:
    """Compare every neuron with the ANN on the same images, worst first by the error at the last timestep.

    The relative error is ‖m[t] - x‖ / ‖x‖ over all images and positions that do not keep silent, where x is the ANN's
    activation: it includes what the neuron inherits from those before it. The blocks of a spike-driven network are compared
    instead of its neurons: the mean over time of what a block has put out so far with what the ANN's block puts out.

    All processes of a ``torch.distributed`` group call this, each with images of its own, and get the errors over all.

    Args:
        snn: the converted network.
        images: ``[B, C, H, W]``, a few; the ANN's activations are held in memory.
        timesteps: T; the recipe's unless given.
    """
    timesteps = snn.recipe.timesteps if timesteps is None else timesteps
    if snn.recipe.spike_driven:
        return sorted(_blocks(snn, images, timesteps), key=lambda row: -row.relative_error[-1])
    names = snn.neurons()
    reference: dict[str, Tensor] = {}
    errors: dict[str, list[float]] = {name: [] for name in names}
    spikes = dict.fromkeys(names, 0)

    def remember(name: str, event: Event) -> None:
        reference[name] = names[name].speaking(event.target)

    def compare(name: str, event: Event) -> None:
        errors[name].append(float((names[name].speaking(event.decoded) - reference[name]).norm()))
        sent = sum(int(spike.count_nonzero()) for spike in event.spikes)
        spikes[name] = sent if snn.recipe.synchronous else spikes[name] + sent

    with probing(snn.network, _bind(names, remember)), analog(snn.network):
        simulate(snn.network, snn.clock, images, 1)
    with probing(snn.network, _bind(names, compare)):
        snn(images, timesteps, chunk=1)
    rows = [_row(name, snn.owner(name), errors[name], reference[name], spikes[name], reference[name].numel()) for name in names]
    return sorted(rows, key=lambda row: -row.relative_error[-1])


def _bind(names: Iterable[str], see: Callable[[str, Event], None]) -> dict[str, Callable[[Event], None]]:
    return {name: partial(see, name) for name in names}


def _blocks(snn: SpikingModel, images: Tensor, timesteps: int) -> Iterator[ModuleError]:
    """The blocks of a spike-driven network beside those of its ANN."""
    assert snn.teacher is not None
    names = [plan.name for plan in snn.plan.blocks]
    with outputs_of(snn.teacher, names) as wanted:
        snn.teacher(images)
    counts = {name: SpikeCount() for name in names}
    with ExitStack() as stack:
        found = stack.enter_context(outputs_of(snn.network, names))
        for name in names:
            stack.enter_context(counting_spikes(snn.network.get_submodule(name), counts[name]))
        snn(images, timesteps)
    for name in names:
        steps = found[name].unflatten(0, (timesteps, -1)).cumsum(0)
        x = wanted[name]
        errors = [float((so_far / t - x).norm()) for t, so_far in enumerate(steps, start=1)]
        count = counts[name]
        yield _row(name, name, errors, x, float(count.spikes.sum()), float(count.neurons[-1]))


def _row(name: str, module: str, errors: list[float], x: Tensor, spikes: float, neurons: float) -> ModuleError:
    """The figures over all processes, from what this one saw: the norms of the errors, and the ANN's activation."""
    squares = [norm**2 for norm in (*errors, float(x.norm()))]
    *lost, size, spikes, neurons = total(torch.tensor([*squares, spikes, neurons], dtype=torch.float64)).tolist()
    return ModuleError(name, module, [math.sqrt(square) / max(math.sqrt(size), TINY) for square in lost], spikes / neurons)
