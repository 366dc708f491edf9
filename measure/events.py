"""Synaptic operations event by event: columns of weights, or of another operand, are added where events arrive.

Nothing here is a matrix product or a convolution. Each function takes a tensor whose values that are not 0 are events, and adds
into a result; it returns how many additions that took. A weight of 0 is added, what another operand lacks is not.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from ..errors import ModelError

AT_ONCE = 2**14  # events, so that memory stays small


def add_linear(result: Tensor, events: Tensor, weight: Tensor) -> int:
    """A linear layer: ``[..., in]`` events, weight ``[out, in]``, into ``[..., out]``."""
    rows, done = result.view(-1, result.shape[-1]), 0
    for (row, channel), value in _some(events.reshape(-1, events.shape[-1])):
        columns = weight.T[channel]
        _add(rows, row, columns, value)
        done += columns.numel()
    return done


def add_convolution(
    result: Tensor, events: Tensor, weight: Tensor, stride: int | tuple[int, ...], padding: int | tuple[int, ...],
    dilation: int | tuple[int, ...], groups: int,
) -> int:  # fmt: skip
    """A convolution: events ``[N, in, H, W]`` and weight ``[out, in / groups, h, w]`` into ``[N, out, H', W']``."""
    if isinstance(padding, str):
        raise ModelError(f"the event-driven replay knows paddings by number, got {padding!r}")
    (down, right), (top, left), (apart_y, apart_x) = _pair(stride), _pair(padding), _pair(dilation)
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    by_group = weight.unflatten(0, (groups, outputs))
    height, width = result.shape[2:]
    rows = result.new_zeros(len(result) * groups * height * width, outputs)
    done = 0
    for (image, channel, y, x), value in _some(events):
        group = channel // inputs
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                # The output at o reads the input at o * stride + offset * dilation - padding.
                at_y, at_x = y + top - i * apart_y, x + left - j * apart_x
                there = (at_y >= 0) & (at_x >= 0) & (at_y % down == 0) & (at_x % right == 0)
                there &= (at_y < height * down) & (at_x < width * right)
                row = ((image * groups + group) * height + at_y // down) * width + at_x // right
                columns = by_group[group[there], :, channel[there] % inputs, i, j]
                _add(rows, row[there], columns, value[there])
                done += columns.numel()
    result += rows.reshape(len(result), groups, height, width, outputs).permute(0, 1, 4, 2, 3).flatten(1, 2)
    return done


def add_convolution_1d(
    result: Tensor, events: Tensor, weight: Tensor, stride: tuple[int], padding: tuple[int], dilation: tuple[int], groups: int
) -> int:
    """A convolution along one axis: events ``[N, in, W]`` and weight ``[out, in / groups, w]`` into ``[N, out, W']``."""
    flat = result.unsqueeze(2), events.unsqueeze(2), weight.unsqueeze(2)
    return add_convolution(*flat, (1, *stride), (0, *padding), (1, *dilation), groups)


def add_left(result: Tensor, events: Tensor, other: Tensor) -> int:
    """A matrix product with the events on the left: ``[..., N, K]`` and other ``[..., K, M]``, into ``[..., N, M]``."""
    batch = result.shape[:-2]
    events, other = events.expand(*batch, *events.shape[-2:]), other.expand(*batch, *other.shape[-2:])
    width, inner = events.shape[-2:]
    rows, partners, done = result.view(-1, result.shape[-1]), other.reshape(-1, other.shape[-1]), 0
    for (place, row, k), value in _some(events.reshape(-1, width, inner)):
        columns = partners[place * inner + k]
        _add(rows, place * width + row, columns, value)
        done += int(columns.count_nonzero())
    return done


def add_right(result: Tensor, other: Tensor, events: Tensor) -> int:
    """A matrix product with the events on the right."""
    turned = torch.zeros_like(result.transpose(-1, -2)).contiguous()
    done = add_left(turned, events.transpose(-1, -2), other.transpose(-1, -2))
    result += turned.transpose(-1, -2)
    return done


def add_gated(result: Tensor, events: Tensor, other: Tensor) -> int:
    """A product element by element: events and other, broadcasting, into ``[...]``."""
    events, other = torch.broadcast_tensors(events, other)
    flat, done = result.view(-1), 0
    for (place,), value in _some(events.flatten()):
        partner = other.flatten()[place]
        flat.index_add_(0, place, value * partner)
        done += int(partner.count_nonzero())
    return done


def _some(events: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """The places and values of events, some at a time: a simulation by the host, which looks for them."""
    for places in events.nonzero().split(AT_ONCE):
        index = places.unbind(1)
        yield index, events[index]


def _add(rows: Tensor, row: Tensor, columns: Tensor, value: Tensor) -> None:
    """Add a column for each event into its row."""
    rows.index_add_(0, row, columns * value[:, None])
