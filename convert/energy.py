"""What a converted network costs, by the field's convention: additions for spikes, multiply-accumulates for what is analog.

Compute only, with the energies of 32-bit floating-point arithmetic at 45 nm (Horowitz, "Computing's energy problem", ISSCC
2014): memory traffic, and the shift that a graded spike needs, are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..spiking import SpikeCount, counting_spikes
from ..spiking.shards import total
from .dataflow import Dataflow, dataflow

if TYPE_CHECKING:
    from .model import SpikingModel

AC, MAC = 0.9, 4.6  # pJ


@dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
        flow: of the network.
        caused: accumulates that spikes caused up to each timestep, ``[T]``, of all images together.
        synchronous: whether the network is layer-synchronous: its nonlinear functions are then evaluated only once.
    """

    flow: Dataflow
    caused: Tensor
    synchronous: bool

    def at(self, t: int, images: int) -> tuple[float, float]:
        """After ``t`` timesteps, for an image: accumulates over the ANN's multiply-accumulates, and energy over the ANN's.

        Charged are `AC` for each accumulate that a spike caused, and in every timestep `AC` for each addition of a rotation and
        `MAC` for each multiply-accumulate of an operation that no neuron drives and of the nonlinear functions; to the ANN its
        synaptic operations and these functions.
        """
        caused = float(self.caused[t - 1]) / images
        passes = 1 if self.synchronous else t
        added = caused + passes * self.flow.additions
        analog = passes * (self.flow.undriven + self.flow.analog)
        return caused / self.flow.macs, (AC * added + MAC * analog) / (MAC * (self.flow.macs + self.flow.analog))


@torch.no_grad()
def energy(snn: SpikingModel, images: Tensor) -> float:
    """Of all the recipe's timesteps on these images ``[B, C, H, W]``, relative to the ANN's; over all processes of a group."""
    flow = dataflow(snn.network, snn.input_size)
    with counting_spikes(snn.network, SpikeCount(flow.fan_out, snn.recipe.synchronous)) as count:
        snn(images, chunk=1)
    cost = Cost(flow, count.over_processes().caused(), snn.recipe.synchronous)
    return cost.at(snn.recipe.timesteps, int(total(torch.tensor(len(images)))))[1]
