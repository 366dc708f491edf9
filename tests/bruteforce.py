"""Synaptic operations counted one by one, in plain loops that can be read off the definition. Nothing here knows the meter.

A signal is a nested list of numbers, of one image in one timestep. An integer n is |n| spikes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vit2snn.metering import Meter
from vit2snn.spiking import Neuron, share_clock, simulate


class Sends(Neuron):
    """Sends what it is given."""

    def step(self, t: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return x, None


@torch.no_grad()
def metered(network: nn.Module, frames: Tensor, chunk: int | None = None) -> Meter:
    """The meter after a run of frames ``[T, B, C, H, W]`` through a network that begins with a neuron."""
    clock = share_clock(network)
    with Meter(network) as meter:
        simulate(network, clock, meter.show(frames), len(frames), chunk)
    return meter


def spent(meter: Meter) -> list[list[tuple[int, int]]]:
    """(accumulates, multiply-accumulates) of each timestep and image."""
    return [[(ac, mac) for ac, mac in images] for images in meter.spent().tolist()]


def each(count: Callable[[Any], int], frames: Tensor) -> list[list[int]]:
    """``count`` of every image in every timestep of ``[T, B, ...]``."""
    return [[count(image) for image in images] for images in frames.tolist()]


def flat(values: Any) -> list[float]:
    return [number for value in values for number in flat(value)] if isinstance(values, list) else [values]


def spikes(values: Any) -> int:
    """All spikes in a signal."""
    return sum(int(abs(value)) for value in flat(values))


def firing(values: Any) -> int:
    """All values of a signal that are not 0."""
    return sum(value != 0 for value in flat(values))


def whole(values: Any) -> bool:
    return all(value == round(value) for value in flat(values))


@cache
def reads(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[list[list[int]], int]:
    """How often a convolution reads each pixel for one output channel, and how often it reads anything, padding included."""
    height, width = size
    times, total = [[0] * width for _ in range(height)], 0
    top = 0
    while top + dilation[0] * (kernel[0] - 1) < height + 2 * padding[0]:
        left = 0
        while left + dilation[1] * (kernel[1] - 1) < width + 2 * padding[1]:
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    y, x = top + i * dilation[0] - padding[0], left + j * dilation[1] - padding[1]
                    total += 1
                    if 0 <= y < height and 0 <= x < width:
                        times[y][x] += 1
            left += stride[1]
        top += stride[0]
    return times, total


def _geometry(conv: nn.Module, image: Any) -> tuple[list[list[int]], int]:
    pairs = [tuple(getattr(conv, name)) for name in ("kernel_size", "stride", "padding", "dilation")]
    if len(pairs[0]) == 1:
        pairs = [(neutral, *pair) for pair, neutral in zip(pairs, (1, 1, 0, 1), strict=True)]
    return reads((len(image[0]), len(image[0][0])), *pairs)


def by_convolution(conv: nn.Module, image: Any) -> int:
    """Each spike of an image ``[C, H, W]`` (or ``[C, L]``) is added to every output that reads its pixel."""
    image = image if isinstance(image[0][0], list) else [[row] for row in image]
    times, _ = _geometry(conv, image)
    outputs = conv.out_channels // conv.groups
    count = 0
    for channel in image:
        for y, row in enumerate(channel):
            for x, value in enumerate(row):
                count += int(abs(value)) * times[y][x] * outputs
    return count


def dense_convolution(conv: nn.Module, image: Any) -> int:
    """Every output multiplies what each of its kernel's weights reads, be it padding."""
    image = image if isinstance(image[0][0], list) else [[row] for row in image]
    _, total = _geometry(conv, image)
    count = 0
    for _ in range(conv.out_channels):
        for _ in range(conv.in_channels // conv.groups):
            count += total
    return count


def by_linear(linear: nn.Linear, rows: Any) -> int:
    """Each spike is added to all outputs of its row."""
    count = 0
    for value in flat(rows):
        for _ in range(int(abs(value))):
            count += linear.out_features
    return count


def dense_linear(linear: nn.Linear, rows: Any) -> int:
    count = 0
    for _ in flat(rows):
        count += linear.out_features
    return count


Matrix = Sequence[Sequence[float]]


def by_matrix(first: Matrix, second: Matrix) -> int:
    """In a product of matrices, each spike of the first adds the values of the second that it meets and that are not 0."""
    met = [sum(value != 0 for value in row) for row in second]
    count = 0
    for row in first:
        for k, value in enumerate(row):
            for _ in range(int(abs(value))):
                count += met[k]
    return count


def product(first: Matrix, second: Matrix) -> list[list[float]]:
    """A product of matrices, number by number."""
    columns = list(zip(*second, strict=True))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in first]


def flipped(matrix: Matrix) -> list[list[float]]:
    return [list(column) for column in zip(*matrix, strict=True)]


def either(first: Matrix, second: Matrix) -> tuple[int, int]:
    """Accumulates of a product of two matrices of spikes: by those of the first, and by those of the second."""
    return by_matrix(first, second), by_matrix(flipped(second), flipped(first))


def together(first: Any, second: Any) -> int:
    """Places at which two binary signals of the same shape both have a spike."""
    return sum(a != 0 and b != 0 for a, b in zip(flat(first), flat(second), strict=True))
