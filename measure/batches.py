"""What evaluations of converted networks and of the zoo have in common: the first images apart, checks, and the image set."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from ..errors import DataError, OutOfMemoryError, is_out_of_memory

logger = logging.getLogger("vit2snn")


class Parts:
    """Runs something on batches, and on parts of them once memory has run out."""

    def __init__(self) -> None:
        self.most: int | None = None  # images at a time; None for all of a batch

    def run(self, call: Callable[[Tensor, Tensor], None], images: Tensor, labels: Tensor) -> None:
        """``call`` on images ``[B, C, H, W]`` or ``[T, B, C, H, W]`` and labels ``[B]``, or on their parts one after the other.

        A call that fails for want of memory must leave nothing behind; it is made again with half as many images.

        Raises:
            OutOfMemoryError: memory does not suffice for a single image.
        """
        axis, begun = images.ndim - 4, 0
        while begun < len(labels):
            count = min(self.most or len(labels), len(labels) - begun)
            try:
                call(images.narrow(axis, begun, count), labels[begun : begun + count])
                begun += count
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if count == 1:
                    raise OutOfMemoryError(
                        "memory runs out with one image at a time", "use a device with more memory (--device)"
                    ) from error
            self.most = count // 2  # outside of the handler, which would keep alive what the call had made
            clear_device_cache(garbage_collection=True)
            logger.warning("memory ran out with %d images at a time; going on with %d", count, self.most)


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
