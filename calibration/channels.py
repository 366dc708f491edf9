"""The channels of a neuron: the axes of its input along which its parameters may vary."""

from __future__ import annotations

import math

from torch import Tensor


def to_channels(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``[B, ...]`` to ``[channels, samples]``, where the negative ``axes`` tell the channels. No axes: one channel."""
    kept = [axis for axis in range(1, x.ndim) if axis - x.ndim in axes]
    rest = [axis for axis in range(x.ndim) if axis not in kept]
    return x.permute(*kept, *rest).reshape(math.prod(x.shape[axis] for axis in kept), -1)


def from_channels(values: Tensor, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``[channels]`` to the shape that broadcasts against one image of ``x`` ``[B, ...]``, with its type and device."""
    return values.to(x).reshape([x.shape[axis] if axis - x.ndim in axes else 1 for axis in range(1, x.ndim)])
