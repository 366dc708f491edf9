"""What a converted network costs, beside its ANN: counted by the meter on images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..metering import FLOAT32, Dense, Meter, Tally, energy
from ..spiking import analog, simulate

if TYPE_CHECKING:
    from .model import SpikingModel


SPIKELESS = {"function", "comparison", "rotation", "shift"}
"""Kinds of operations that no spike causes."""


@dataclass(frozen=True)
class Spent:
    """The energy of all timesteps of a run, relative to the ANN's: in all, and without what its spikes caused."""

    total: float
    silent: float


@torch.no_grad()
def dense(snn: SpikingModel) -> Dense:
    """What the ANN of a converted network does for one image."""
    weight = next(snn.network.parameters())
    image = torch.randn(1, *snn.input_size, dtype=weight.dtype, device=weight.device)
    network: nn.Module = snn.network if snn.teacher is None else snn.teacher
    with analog(), Meter(network) as meter:
        if snn.teacher is None:
            simulate(network, meter.show(image), 1)
        else:
            network(meter.show(image))
    return Dense.of(meter.tallies)


@torch.no_grad()
def spent(snn: SpikingModel, images: Tensor) -> Spent:
    """Of all the recipe's timesteps on these images ``[B, C, H, W]``; over all processes of a group."""
    with Meter(snn.network) as meter:
        snn(meter.show(images), chunk=1)
    meter.over_processes()
    reference = dense(snn).energy() * meter.images
    total = _energy(meter.tallies, snn.recipe.synchronous)
    spikeless = [tally for tally in meter.tallies if tally.kind in SPIKELESS]
    multiplied = sum(float(tally.multiplies.sum()) for tally in meter.tallies if tally.kind not in SPIKELESS) * FLOAT32.mac
    return Spent(total / reference, (_energy(spikeless, snn.recipe.synchronous) + multiplied) / reference)


def _energy(tallies: list[Tally], synchronous: bool) -> float:
    """Of all timesteps; of a layer-synchronous network, of the last one, which holds those before."""
    each = [torch.stack([tally.accumulates, tally.multiplies], -1) for tally in tallies]
    return sum(float(energy(counts[-1:] if synchronous else counts).sum()) for counts in each)
