"""Threshold balancing of membrane neurons, channel by channel, on what they see of sample images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spiking import Balanced, Neuron, Run

GAINS = (0.25, 0.4, 0.6, 0.9, 1.4, 2.0)
OFFSETS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SAMPLED = 4096  # positions that are looked at


@torch.no_grad()
def balance(balanced: Balanced, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Set thresholds, resting currents and height so that firing rates tell most of what the neurons stand for, in place.

    That is the neuron's function of what it sees, in the mean over time.

    Args:
        balanced: in front of, or in place of, what ``frames`` are given to.
        frames: what it sees, ``[T, B, ...]``.

    Returns:
        The firing rates, and what they stand for, ``[samples, C]`` both.
    """
    axes = balanced.channels(frames[0])
    image = frames.shape[2:]
    shape = tuple(size if axis in axes else 1 for axis, size in zip(range(-len(image), 0), image, strict=True))
    currents = _by_channel(frames, axes)
    target = balanced.function(currents.mean(0))
    mean, std = currents.flatten(0, 1).mean(0), currents.flatten(0, 1).std(0, correction=0)
    std = torch.where(std > 1e-6 * std.mean(), std, 1.0)
    gain, offset = least_error(balanced.neuron, (currents - mean) / std, target)
    rate = counts(balanced.neuron, (currents - mean) / std * gain + offset)
    balanced.log_threshold.data = (std / gain).log().reshape(shape).to(balanced.height)
    balanced.offset.data = (offset - gain * mean / std).reshape(shape).to(balanced.height)
    height = (rate * target).sum() / rate.square().sum().clamp(min=1e-12)
    balanced.height.data = torch.where(height == 0, 1.0, height).to(balanced.height)  # of spikes there are none
    return rate, target


def _by_channel(frames: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``[T, B, ...]`` as ``[T, samples, C]``, with samples from everywhere."""
    last = range(-len(axes), 0)
    together = frames.movedim(sorted(axes), list(last)).flatten(-len(axes)).flatten(1, -2)
    step = -(-together.shape[1] // SAMPLED)
    return together[:, ::step].float()


def counts(neuron: Neuron, currents: Tensor) -> Tensor:
    """Mean output over time of a neuron at rest that gets ``currents`` ``[T, samples, C]``: ``[samples, C]``."""
    with torch.no_grad():
        return neuron.advance(currents, None, Run(timesteps=len(currents)))[0].mean(0)


def least_error(neuron: Neuron, currents: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset ``[C]`` with which a linear reader of the neuron's firing rate knows most about ``target``.

    Of a target that never varies the rate is that of a steady neuron, or none where the target is 0.

    Args:
        neuron: with threshold θ; it is not changed.
        currents: standardised, ``[T, samples, C]``.
        target: what the rate should tell, ``[samples, C]``.
    """
    channels = currents.shape[-1]
    best = currents.new_zeros(channels)
    gain = currents.new_full((channels,), GAINS[0])
    offset = torch.where((target == 0).all(0), OFFSETS[0], OFFSETS[-1]).to(currents)
    centred = target - target.mean(0)
    centred = centred / centred.norm(dim=0).clamp(min=1e-12)
    for g in GAINS:
        for b in OFFSETS:
            rate = counts(neuron, currents * g + b)
            rate = rate - rate.mean(0)
            correlation = (rate * centred).sum(0) / rate.norm(dim=0).clamp(min=1e-6)
            better = correlation > best + 1e-4
            best = torch.where(better, correlation, best)
            gain, offset = torch.where(better, g, gain), torch.where(better, b, offset)
    return gain, offset
