"""What a network costs beside its ANN, counted by the meter on images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..spiking import SpikingNetwork, evaluating
from .energy import FLOAT32, Dense, energy
from .meter import Meter
from .tally import Tally

SPIKELESS = {"function", "comparison", "rotation", "shift"}
"""Kinds of operations that no spike causes."""


@dataclass(frozen=True)
class Spent:
    """The energy of all timesteps of a run, relative to the ANN's: in all, and without what its spikes caused."""

    total: float
    silent: float


@torch.no_grad()
def dense(network: SpikingNetwork, images: Tensor) -> Dense:
    """What the ANN of a network does for one of these images ``[B, C, H, W]``."""
    reference = network.reference
    assert reference is not None
    image = images[:1].to(next(reference.parameters()))
    with evaluating(network), Meter(reference) as meter:
        network.ann(meter.show(image))
    return Dense.of(meter.tallies)


@torch.no_grad()
def spent(network: SpikingNetwork, images: Tensor) -> Spent:
    """Of all timesteps of the network on these images ``[B, C, H, W]``; over all processes of a group."""
    with evaluating(network), Meter(network.network) as meter:
        network.readout(meter.show(images), chunk=1)
    meter.over_processes()
    reference = dense(network, images).energy() * meter.images
    total = _energy(meter.tallies, network.synchronous)
    spikeless = [tally for tally in meter.tallies if tally.kind in SPIKELESS]
    multiplied = sum(float(tally.multiplies.sum()) for tally in meter.tallies if tally.kind not in SPIKELESS) * FLOAT32.mac
    return Spent(total / reference, (_energy(spikeless, network.synchronous) + multiplied) / reference)


def _energy(tallies: list[Tally], synchronous: bool) -> float:
    """Of all timesteps; of a layer-synchronous network, of the last one, which holds those before."""
    each = [torch.stack([tally.accumulates, tally.multiplies], -1) for tally in tallies]
    return sum(float(energy(counts[-1:] if synchronous else counts).sum()) for counts in each)
