"""Threshold balancing of membrane neurons, by the gain and the offset of the normalisation before them.

A threshold of θ and a current y are a threshold of 1 and a current y / θ, so the neurons keep their threshold and the affine
part of the normalisation is balanced, channel by channel.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..spiking import Neuron, Run

Balance = Literal["error", "rate"]
GAINS = (0.25, 0.4, 0.6, 0.9, 1.4, 2.0)
OFFSETS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SPREAD = 0.7


def counts(neuron: Neuron, currents: Tensor) -> Tensor:
    """Mean output over time of a neuron at rest that gets ``currents`` ``[T, samples, C]``: ``[samples, C]``."""
    with torch.no_grad():
        return neuron.advance(currents, None, Run(timesteps=len(currents)))[0].mean(0)


def least_error(neuron: Neuron, currents: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset ``[C]`` with which a linear reader of the neuron's firing rate knows most about ``target``.

    Args:
        neuron: with threshold θ; it is not changed.
        currents: standardised, ``[T, samples, C]``.
        target: what the rate should tell, ``[samples, C]``.
    """
    channels = currents.shape[-1]
    best = currents.new_full((channels,), -1.0)
    gain, offset = currents.new_ones(channels), currents.new_ones(channels)
    centred = target - target.mean(0)
    centred = centred / centred.norm(dim=0).clamp(min=1e-12)
    for g in GAINS:
        for b in OFFSETS:
            rate = counts(neuron, currents * g + b)
            rate = rate - rate.mean(0)
            correlation = (rate * centred).sum(0) / rate.norm(dim=0).clamp(min=1e-6)
            better = correlation > best + 1e-4
            best = torch.where(better, correlation, best)
            gain[better], offset[better] = g, b
    return gain, offset


def at_rate(neuron: Neuron, currents: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Gain and offset ``[C]`` with which a neuron fires at ``rate``, in the mean over ``currents`` (as for `least_error`).

    The gain is the one that spreads currents over the range in which firing rates differ; the offset is searched for.
    """
    low, high = currents.new_full((currents.shape[-1],), -8.0), currents.new_full((currents.shape[-1],), 8.0)
    gain = torch.full_like(low, SPREAD)
    for _ in range(12):  # halvings of the interval: to 0.004 of a threshold
        middle = (low + high) / 2
        silent = counts(neuron, currents * gain + middle).abs().mean(0) < rate
        low, high = torch.where(silent, middle, low), torch.where(silent, high, middle)
    return gain, (low + high) / 2
