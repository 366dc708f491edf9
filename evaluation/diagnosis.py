"""Which module broke it: the error of every neuron's decoded value against the ANN's activation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..convert import SpikingModel
from ..spiking import Event, probing


@dataclass(frozen=True)
class ModuleError:
    """One neuron: relative error of its decoded value after each timestep, and its spikes in all timesteps together."""

    name: str
    module: str
    relative_error: list[float]
    spikes_per_neuron: float


@torch.no_grad()
def diagnose(snn: SpikingModel, images: Tensor, timesteps: int | None = None) -> list[ModuleError]:
    """Compare every neuron with the ANN on the same images, worst first by the error at the last timestep.

    The relative error is ‖m[t] - x‖ / ‖x‖ over all images and positions, where x is the ANN's activation: it includes what
    the neuron inherits from those before it.

    Args:
        snn: the converted network.
        images: ``[B, C, H, W]``, a few; the ANN's activations are held in memory.
        timesteps: T; the recipe's unless given.
    """
    timesteps = snn.recipe.timesteps if timesteps is None else timesteps
    names = snn.neurons()
    reference: dict[str, Tensor] = {}
    errors: dict[str, list[float]] = {name: [] for name in names}
    spikes = dict.fromkeys(names, 0.0)

    def remember(name: str, event: Event) -> None:
        reference[name] = event.target

    def compare(name: str, event: Event) -> None:
        x = reference[name]
        errors[name].append(float((event.decoded - x).norm() / x.norm().clamp(min=torch.finfo(x.dtype).tiny)))
        spikes[name] += sum(int(spike.count_nonzero()) for spike in event.spikes) / x.numel()

    with probing(snn.network, _bind(names, remember)):
        snn.ann(images)
    with probing(snn.network, _bind(names, compare)):
        snn(images, timesteps, chunk=1)
    rows = [ModuleError(name, snn.owner(name), errors[name], spikes[name]) for name in names]
    return sorted(rows, key=lambda row: -row.relative_error[-1])


def _bind(names: Iterable[str], see: Callable[[str, Event], None]) -> dict[str, Callable[[Event], None]]:
    return {name: partial(see, name) for name in names}
