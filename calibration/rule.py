"""How a threshold follows from the magnitudes that a neuron sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spiking import CodedNeuron
from ..spiking.coding import emit, innovation, integrate
from .activity import Activity
from .channels import from_channels, to_channels
from .observers import OBSERVERS, Observer


@dataclass(frozen=True)
class ThresholdRule:
    """How thresholds follow from what a neuron sees.

    Args:
        observer: a name in `OBSERVERS`.
        percentile: of the ``percentile`` observer, 0..100.
        headroom: the threshold is this multiple of the observer's value.
        closed_loop: a threshold for each timestep, from the innovations of the spiking network; otherwise one for all
            timesteps, from the activations of the ANN.
    """

    observer: str = "percentile"
    percentile: float = 99.9
    headroom: float = 4.0
    closed_loop: bool = True

    def watch(self, neuron: CodedNeuron, timesteps: int) -> Observer:
        """A new observer for a neuron whose threshold will serve ``timesteps`` timesteps."""
        return OBSERVERS[self.observer](self.percentile, decoder(neuron, timesteps))

    def threshold(self, neuron: CodedNeuron, observer: Observer, seen: Activity) -> Tensor:
        """The observer's value with head-room, in the shape that broadcasts against one image's input; never 0.

        A neuron, channel or step that was silent on the calibration images may still have to fire on others, so its
        threshold is a small share of what the rest of the neuron has.
        """
        values = observer.value() * self.headroom
        floor = max(float(values.max()) * 2.0**-10, float(seen.scale) * 2.0**-20)
        values = values.clamp(min=floor) if floor > 0 else torch.ones_like(values)
        return from_channels(values, seen.mean.unsqueeze(0), neuron.axes if neuron.per_channel else ())


def magnitudes(neuron: CodedNeuron, u: Tensor) -> Tensor:
    """What a neuron's alphabet can express of ``u`` ``[B, ...]``, as observers want it: ``[channels, samples]``."""
    assert neuron.alphabet is not None
    return to_channels(neuron.alphabet.magnitudes(u), neuron.axes if neuron.per_channel else ())


def decoder(neuron: CodedNeuron, timesteps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """``decode(values, thresholds)``: what ``timesteps`` steps of this neuron make of constant deviations."""
    alphabet, coding = neuron.alphabet, neuron.coding
    assert alphabet is not None

    def decode(values: Tensor, thresholds: Tensor) -> Tensor:
        values, thresholds = torch.broadcast_tensors(values, thresholds)
        d = torch.zeros_like(values)
        for t in range(timesteps):
            spikes = emit(alphabet, innovation(coding, t, values, d), thresholds, neuron.spikes_per_step)
            d = integrate(coding, t, d, spikes)
        return d

    return decode
