"""What evaluations of converted networks and of the zoo have in common: the first images apart, checks, and the image set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import DataError


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


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels ``[B]`` that are not classes of the model.

    Raises:
        DataError: there are such.
    """
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(f"labels from {int(labels.min())} to {int(labels.max())} for a model of {classes} classes")


def check_finite(readout: Tensor) -> None:
    """Refuse logits that are NaN or infinite.

    Raises:
        DataError: there are such.
    """
    if not torch.isfinite(readout).all():
        raise DataError("the logits of some images are not finite (NaN or infinity)", "check the images, and the weights")


def set_digest(digests: Iterable[str]) -> str:
    """What a set of images is known by, in whatever order: 16 hexadecimal digits."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]
