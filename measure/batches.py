"""Batches as a network is scored with them: understood or refused, cut where memory runs out, and the image set."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from ..data.sources import UNLABELLED
from ..errors import DataError, OutOfMemoryError, is_out_of_memory
from .outputs import Output

logger = logging.getLogger("vit2snn")

IMAGES = ("image", "images", "pixel_values", "img", "x")
LABELS = ("label", "labels", "fine_label")
"""What images and labels are called in batches that are dictionaries."""


def labelled(batch: Any, output: Output = "classes") -> tuple[Tensor, Tensor] | None:
    """Images and labels of a batch, or None if it holds none.

    Args:
        batch: a tuple or list of images ``[B, C, H, W]`` or frames ``[T, B, C, H, W]``, labels ``[B]``, and anything else, as
            an index; or a dictionary with one of `IMAGES` and one of `LABELS`. NumPy's arrays will do. Without labels, it may
            also be the images alone.
        output: what the network puts out. Labels of numbers are numbers, and all others classes; only those of a classifier
            must be there. In their place come NaN or `UNLABELLED`.

    Raises:
        DataError: it is something else.
    """
    images, labels = map(as_tensor, _parts(batch, optional=output != "classes"))
    if isinstance(images, Tensor) and images.ndim == 4:
        check_preprocessed(images)
    if not isinstance(images, Tensor) or images.ndim not in (4, 5):
        raise DataError(f"images are {_told(images)}, expected a tensor [B, C, H, W], or frames [T, B, C, H, W]")
    count = images.shape[images.ndim - 4]
    if not count:
        return None
    if labels is None:
        labels = torch.full((count,), math.nan if output == "numbers" else UNLABELLED)
    return images, _numbers(labels, count) if output == "numbers" else _classes(labels, count)


def _parts(batch: Any, optional: bool) -> tuple[Any, Any]:
    """Images and labels as they are in a batch; None where labels are optional, and not there."""
    if isinstance(batch, Mapping):
        there = not optional or any(name in batch for name in LABELS)
        return _named(batch, IMAGES), _named(batch, LABELS) if there else None
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[0], batch[1]
    if optional and isinstance(batch, (Tensor, np.ndarray)):
        return batch, None
    if optional and isinstance(batch, (tuple, list)) and batch:
        return batch[0], None
    held = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    raise DataError(
        f"a batch is a {type(batch).__name__}{held}, expected images and labels",
        "give (images, labels), or a dictionary; a model of features, which needs no labels, has num_classes = 0",
    )


def as_tensor(values: Any) -> Any:
    """NumPy's arrays as tensors, and all else as it is.

    Raises:
        DataError: it is an array of no numbers.
    """
    if not isinstance(values, np.ndarray):
        return values
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"an array of {values.dtype} is no tensor: {error}", "make one array of numbers of it") from error


def check_preprocessed(images: Tensor) -> None:
    """Refuse images as they are in files.

    Raises:
        DataError: they are whole numbers.
    """
    if images.ndim < 2 or not images.is_floating_point():
        told = f"{images.dtype} of {tuple(images.shape)}"
        raise DataError(
            f"images are preprocessed, that is floating-point numbers [B, C, H, W], got {told}",
            "prepare them as timm.data.create_transform does for the model",
        )


def _named(batch: Mapping[Any, Any], names: Sequence[str]) -> Any:
    """The entry that has one of the names."""
    for name in names:
        if name in batch:
            return batch[name]
    raise DataError(f"a batch has {', '.join(map(str, batch)) or 'nothing'}, expected one of {', '.join(names)}")


def _classes(labels: Any, count: int) -> Tensor:
    """Labels ``[B]`` as integers."""
    if isinstance(labels, (tuple, list)) and all(isinstance(label, int) for label in labels):
        labels = torch.tensor(labels, dtype=torch.int64)
    if isinstance(labels, Tensor) and labels.shape == (count,) and not labels.is_floating_point():
        return labels.long()
    hint = ""
    if isinstance(labels, Tensor) and labels.ndim == 2:
        hint = (
            "take labels[:, 0]"
            if labels.shape[1] == 1
            else "one-hot labels, or mixtures, have no one class: take labels.argmax(1)"
        )
    raise DataError(f"labels are {_told(labels)}, expected a tensor [{count}] with the class of each image", hint)


def _numbers(labels: Any, count: int) -> Tensor:
    """Labels ``[B]`` or ``[B, 1]`` in double precision."""
    if isinstance(labels, (tuple, list)) and all(isinstance(label, (int, float)) for label in labels):
        labels = torch.tensor(labels, dtype=torch.float64)
    if isinstance(labels, Tensor) and labels.shape in ((count,), (count, 1)):
        return labels.reshape(count).double()
    raise DataError(f"labels are {_told(labels)}, expected a tensor [{count}] with the number that is wanted of each image")


def _told(value: Any) -> str:
    """What came in place of a tensor of another shape."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and {value.dtype}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")


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


def check_readout(readout: Tensor) -> None:
    """Refuse a network whose output is no list of numbers for each image, ``[B, D]``.

    Raises:
        DataError: it has another shape.
    """
    if readout.ndim != 2:
        raise DataError(
            f"the network gives {list(readout.shape[1:])} numbers for an image, expected one for each class or feature",
            "score a model with a pooling of its tokens, and a head or none behind it",
        )


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels ``[B]`` that are not classes of the model.

    Raises:
        DataError: there are such.
    """
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(f"labels from {int(labels.min())} to {int(labels.max())} for a model of {classes} classes")


def check_finite(are_finite: Tensor) -> None:
    """Refuse logits that are NaN or infinite, by a scalar that is true if none is.

    Raises:
        DataError: there are such.
    """
    if not are_finite:
        raise DataError("the logits of some images are not finite (NaN or infinity)", "check the images, and the weights")


def set_digest(digests: Iterable[str]) -> str:
    """What a set of images is known by, in whatever order: 16 hexadecimal digits."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]
