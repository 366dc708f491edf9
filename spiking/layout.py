"""Where kernels find the values of an image's input, and those of tables that broadcast against it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


@lru_cache(maxsize=1024)
def rows(image: Shape, strides: Shape) -> Tensor:
    """Where each row of an image begins."""
    found = torch.zeros(1, dtype=torch.int64)
    for size, stride in zip(image[:-1], strides[:-1], strict=True):
        found = (found[:, None] + stride * torch.arange(size)).flatten()
    return found


@lru_cache(maxsize=1024)
def places(table: Shape, image: Shape) -> tuple[Tensor, int]:
    """Where each row of an image finds a table that broadcasts against the image, and whether it varies along the row."""
    shape = _padded(table, len(image))
    found = torch.arange(torch.Size(shape).numel()).reshape(shape).expand(*image[:-1], shape[-1])
    return found[..., 0].flatten().contiguous(), int(shape[-1] > 1)


class Layout(NamedTuple):
    """Of an image's input and of tables, in rows that are as long as the memory allows.

    Attributes:
        offsets: ``[1 + tables, rows]`` int32, where rows begin in the input, and in each table.
        varies: of each table, whether it has a value for each value of a row, or one for all.
        rows: their number.
        width: of each.
        aligned: whether all that is read along rows begins at multiples of 16 values.
    """

    offsets: Tensor
    varies: tuple[bool, ...]
    rows: int
    width: int
    aligned: bool


@lru_cache(maxsize=4096)
def layout(image: Shape, strides: Shape, tables: tuple[Shape, ...], device: torch.device) -> Layout:
    """Of an input whose values along its last axis lie side by side, and of contiguous tables; offsets lie on ``device``."""
    image, strides, tables = _merged(image, strides, tables)
    found = [places(table, image) for table in tables]
    varies = tuple(bool(step) for _, step in found)
    offsets = torch.stack([rows(image, strides), *[offset for offset, _ in found]]).int()
    along = offsets[[True, *varies]]
    return Layout(offsets.to(device), varies, offsets.shape[1], image[-1], not bool((along % 16).any()))


def _merged(image: Shape, strides: Shape, tables: Sequence[Shape]) -> tuple[Shape, Shape, tuple[Shape, ...]]:
    """The same with neighbouring axes as one wherever nobody can tell them apart; axes of size 1 are gone."""
    kept = [axis for axis, size in enumerate(image) if size > 1] or [len(image) - 1]
    padded = [_padded(table, len(image)) for table in tables]
    axes = [(image[axis], strides[axis], tuple(table[axis] for table in padded)) for axis in kept]
    merged = [axes[-1]]
    for size, stride, sizes in reversed(axes[:-1]):
        last, step, inner = merged[-1]
        alike = all((s == size) == (i == last) for s, i in zip(sizes, inner, strict=True))
        if alike and stride == last * step:
            merged[-1] = size * last, step, tuple(s * i for s, i in zip(sizes, inner, strict=True))
        else:
            merged.append((size, stride, sizes))
    merged.reverse()
    shapes = tuple(tuple(sizes[index] for _, _, sizes in merged) for index in range(len(tables)))
    return tuple(size for size, _, _ in merged), tuple(stride for _, stride, _ in merged), shapes


def _padded(table: Shape, axes: int) -> Shape:
    """The shape with so many axes: leading ones of size 1 come or go."""
    return (1,) * (axes - len(table)) + tuple(table)[max(len(table) - axes, 0) :]
