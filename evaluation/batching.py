"""The first images of a run, by themselves: they are looked at more closely than the others."""

from __future__ import annotations

from torch import Tensor


def apart(batch: tuple[Tensor, Tensor], count: int) -> list[tuple[Tensor, Tensor]]:
    """The first ``count`` images of a batch, then the others if there are any.

    Args:
        batch: images ``[B, C, H, W]``, or frames ``[T, B, C, H, W]``, and labels ``[B]``.
        count: at least 1.
    """
    images, labels = batch
    axis = images.ndim - 4
    if len(labels) <= count:
        return [batch]
    sizes = [count, len(labels) - count]
    return list(zip(images.split(sizes, axis), labels.split(sizes), strict=True))
