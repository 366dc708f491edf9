"""The channels of a neuron: the axes of its input along which its parameters may vary."""

from __future__ import annotations

import math

from torch import Tensor


def rest(x: Tensor, axes: tuple[int, ...]) -> list[int]:
    """The axes of ``[B, ...]`` beside the negative ``axes``."""
    return [axis for axis in range(x.ndim) if axis == 0 or axis - x.ndim not in axes]


def to_channels(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``[B, ...]`` to ``[channels, samples]``, where the negative ``axes`` tell the channels. No axes: one channel."""
    samples = rest(x, axes)
    kept = [axis for axis in range(x.ndim) if axis not in samples]
    return x.permute(*kept, *samples).reshape(math.prod(x.shape[axis] for axis in kept), -1)


def from_channels(values: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``[channels]`` to the shape that broadcasts against one image of ``x`` ``[B, ...]``, with its type and device."""
    return values.to(x).reshape([x.shape[axis] if axis - x.ndim in axes else 1 for axis in range(1, x.ndim)])
