"""Data sets that torchvision and TensorFlow read, through timm: ``torch/NAME`` and ``tfds/NAME``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from .names import read_class_map
from .pictures import as_mode, unreadable
from .sources import ImageSource, Pending, indexed
from .splits import SOUGHT


def open_torchvision(name: str, split: str, mode: str, root: str | Path | None) -> ImageSource:
    """A data set of torchvision by timm's name, such as ``torch/cifar10``.

    Raises:
        DataError: it cannot be opened, or does not tell the label of each image.
    """
    if name.split("/")[-1].lower() in ("folder", "image_folder"):
        raise DataError(f"{name!r} is a folder, which is read without torchvision", "give the folder itself to --data")
    if split.lower() not in SOUGHT:
        raise DataError(f"{name!r} has no split {split!r}, but 'train' and 'validation'", "say which is meant with --split")
    dataset = _created(name, split.lower(), mode, root)
    labels = [int(label) for label in getattr(dataset, "targets", getattr(dataset, "labels", ()))]
    if len(labels) != len(dataset):
        raise DataError(f"{name!r} has {len(dataset)} images and {len(labels)} labels", "choose another data set or --split")

    def read(index: int) -> Image.Image:
        try:
            return as_mode(dataset[index][0], mode)
        except Exception as error:
            raise unreadable(f"image {index} of {name!r}", "an image", error) from error

    return indexed(labels, read, f"{len(labels)} images are in the split {split!r} of {name}", split=split.lower())


def open_tensorflow(
    name: str, split: str, classes: int, mode: str, root: str | Path | None, class_map: str | Path | None
) -> ImageSource:
    """A data set that TensorFlow reads in order, and decodes, which leaves nothing to pass over.

    Raises:
        DataError: it cannot be opened.
    """
    keys: dict[str, Any] = {} if class_map is None else {"class_map": read_class_map(class_map, classes, ())}
    dataset = _created(name, split, mode, root, **keys)

    def stream() -> Iterator[Pending]:
        return ((partial(as_mode, image, mode), int(label)) for image, label, *_ in dataset)

    return ImageSource(None, None, stream, split, notes=(f"images are of the split {split!r} of {name}",))


def _created(name: str, split: str, mode: str, root: str | Path | None, **keys: Any) -> Any:
    from timm.data import create_dataset

    try:
        return create_dataset(name, root=None if root is None else str(root), split=split, input_img_mode=mode, **keys)
    except Exception as error:
        raise DataError(
            f"{name!r} cannot be opened: {error}", "check its name, --split, and where it lies, --data-dir"
        ) from error
