"""Neurons in NIR.

NIR leaves time to the simulator. What simulators do is Euler's method with steps of `STEP` seconds: v += STEP / τ (R I - v), a
spike where v > θ, and v = 0 after it; IF takes each timestep's input once. That is what our neurons with a hard reset do,
but for two things. Ours fire at h >= θ, so the threshold that is written is the next smaller number of single precision. And
where the input does not decay, it is multiplied by τ before, because simulators do not read R.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ...spiking import IF, LIF, PLIF, Balanced, CodedNeuron
from .nodes import Array, Builder, Current, Shape, Signal, as_current, numbers, refused

if TYPE_CHECKING:
    import nir

STEP = 1e-4
"""A timestep in seconds: that of snnTorch's import, which is fixed; Norse takes it as ``dt``."""
RECIPE = "convert the ANN with --recipe neuromorphic"
HARD = "choose neurons that are reset to 0: neuron 'lif' in spikes of kind 'membrane', 'lif' or 'if' in models of the zoo"


def fires(build: Builder, name: str, neuron: nn.Module, x: Signal | Current, layout: tuple[int, ...] = ()) -> Signal:
    """The spikes of a neuron.

    Args:
        build: takes the nodes.
        name: of the neuron.
        neuron: `vit2snn.spiking.Balanced`, or one with a membrane.
        x: what it sees.
        layout: of a balanced neuron: the shape of one image's input, with 1 along the axis of tokens. Flattened, it has the
            channels of ``x``.

    Raises:
        ExportError: NIR cannot say this neuron.
    """
    if isinstance(neuron, CodedNeuron):
        raise refused(name, neuron, "its spikes are graded or decoded over time", RECIPE)
    if not isinstance(neuron, Balanced):
        return _membrane(build, name, neuron, as_current(x))
    if not isinstance(neuron.interaction, nn.Identity):
        raise refused(name, neuron, "its spikes depend on earlier ones", "leave +tim out of structure.attention")
    threshold, offset = (_by_channel(name, neuron, table, layout) for table in (neuron.log_threshold, neuron.offset))
    spikes = _membrane(build, name, neuron.neuron, as_current(x).scaled(np.exp(-threshold), offset))
    return spikes._replace(scale=float(neuron.height.detach()))


def both(build: Builder, name: str, mask: Current, spikes: Signal) -> Signal:
    """Where both binary signals have a spike: where their sum is above 1.5, by a neuron that forgets within a timestep."""
    currents = build.realise(f"{name}.sum", mask.plus(spikes._replace(scale=1.0)))
    return memoryless(build, name, currents, 1.5, spikes.scale)


def memoryless(build: Builder, name: str, x: Signal, threshold: float, scale: float = 1.0) -> Signal:
    """[x > threshold] by a LIF neuron whose time constant is one timestep; nir.Threshold is read by no simulator."""
    build.add(name, x.sources, _lif(build, x.shape, STEP, threshold))
    return Signal((name,), x.shape, scale)


def _by_channel(name: str, neuron: nn.Module, table: Tensor, layout: tuple[int, ...]) -> Array:
    try:
        return numbers(table.expand(layout)).reshape(-1)
    except RuntimeError:
        raise refused(
            name, neuron, f"a table of shape {tuple(table.shape)} has more than one number for each channel", RECIPE
        ) from None


def _membrane(build: Builder, name: str, neuron: nn.Module, x: Current) -> Signal:
    if not isinstance(neuron, IF) or type(neuron) not in (IF, LIF, PLIF):
        raise refused(name, neuron, "its spikes are no binary ones of a membrane", HARD)
    dynamics = neuron.dynamics()
    if dynamics.reset is None:
        raise refused(name, neuron, "a spike lowers its membrane by the threshold (soft reset)", HARD)
    if dynamics.reset or dynamics.start:
        raise refused(name, neuron, f"its membrane starts at {dynamics.start} and is reset to {dynamics.reset}, not 0", HARD)
    leak = float(torch.as_tensor(dynamics.leak).detach())
    below = float(np.nextafter(np.float32(dynamics.threshold), np.float32(0)))
    currents = build.realise(f"{name}.current", x if dynamics.decays or not leak else x.scaled(1 / leak))
    build.add(name, currents.sources, _lif(build, x.shape, STEP / leak, below) if leak else _if(build, x.shape, below))
    return Signal((name,), x.shape)


def _lif(build: Builder, shape: Shape, tau: float, threshold: float) -> nir.NIRNode:
    zeros = np.zeros(shape)
    return build.nir.LIF(
        tau=np.full(shape, tau), r=np.ones(shape), v_leak=zeros, v_threshold=np.full(shape, threshold), v_reset=zeros
    )


def _if(build: Builder, shape: Shape, threshold: float) -> nir.NIRNode:
    return build.nir.IF(r=np.ones(shape), v_threshold=np.full(shape, threshold), v_reset=np.zeros(shape))
