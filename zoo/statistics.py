"""What a zoo model costs, counted without weights and without data."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..spiking import neurons
from .network import SpikingTransformer


@dataclass(frozen=True)
class Statistics:
    """Counts for one image and one timestep.

    Attributes:
        parameters: of the whole model.
        layer_macs: multiply-accumulates of convolutions and linear layers, were they fed by real numbers.
        product_macs: the same of the products of two spiking signals in attention.
        neurons: that may send a spike (or several, for integer neurons).
    """

    parameters: int
    layer_macs: int
    product_macs: int
    neurons: int


def statistics(model: SpikingTransformer, size: tuple[int, int]) -> Statistics:
    """Count on the meta device.

    Args:
        model: any zoo model; it is not changed.
        size: height and width of the image.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    sites: list[int] = []
    for _, neuron in neurons(shadow):
        neuron.register_forward_hook(lambda module, inputs, output: sites.append(output.numel()))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow.readout(torch.empty(1, model.in_chans, *size, device="meta"), timesteps=1)
    counts = counter.get_flop_counts()["Global"]
    products = sum(flops for operation, flops in counts.items() if "bmm" in str(operation))
    return Statistics(
        sum(parameter.numel() for parameter in model.parameters()),
        (sum(counts.values()) - products) // 2,
        products // 2,
        sum(sites),
    )
