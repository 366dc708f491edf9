"""Data sets that torchvision and timm read: ``torch/NAME``, and the streams ``hfids/``, ``wds/`` and ``tfds/``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError
from .folders import TEST, TRAINING, VALIDATION
from .hub import columns
from .names import read_class_map
from .pictures import as_mode, unreadable
from .sources import ImageSource, Labelled, indexed


def open_torchvision(name: str, split: str, mode: str, root: str | Path | None) -> ImageSource:
    """A data set of torchvision by timm's name, such as ``torch/cifar10``.

    Raises:
        DataError: it cannot be opened, or does not tell the label of each image.
    """
    if name.split("/")[-1].lower() in ("folder", "image_folder"):
        raise DataError(f"{name!r} is a folder, which is read without torchvision", "give the folder itself to --data")
    if split.lower() not in (*TRAINING, *VALIDATION, *TEST):
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

    return indexed(labels, read, f"{len(labels)} images are in the split {split!r} of {name}")


def open_stream(
    name: str, split: str, classes: int, mode: str, root: str | Path | None, class_map: str | Path | None
) -> ImageSource:
    """A data set that timm reads in order.

    Raises:
        DataError: it cannot be opened.
    """
    keys: dict[str, Any] = _streamed_columns(name, root) if name.startswith("hfids/") else {}
    if class_map is not None:
        keys["class_map"] = read_class_map(class_map, classes, ())
    # Pixels of 16 bits are ours to convert; TensorFlow's have 8.
    dataset = _created(name, split, mode if name.startswith("tfds/") else "", root, **keys)
    note = f"images are of the split {split!r} of {name}"
    return ImageSource(None, None, lambda: _labelled(dataset, name, mode), notes=(note,))


def _streamed_columns(name: str, root: str | Path | None) -> dict[str, str]:
    """What timm calls the columns of images and labels; nothing where a data set does not describe its columns."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(name.removeprefix("hfids/"), cache_dir=None if root is None else str(root))
    except Exception as error:
        raise _unopened(name, error) from error
    features = builder.info.features
    return dict(zip(("input_key", "target_key"), columns(features, name), strict=True)) if features else {}


def _labelled(dataset: Any, name: str, mode: str) -> Iterator[Labelled]:
    count = 0
    try:
        for image, label, *_ in dataset:
            yield as_mode(image, mode), int(label)
            count += 1
    except Exception as error:
        raise DataError(f"{name!r} cannot be read after {count} images: {error}") from error


def _created(name: str, split: str, mode: str, root: str | Path | None, **keys: Any) -> Any:
    from timm.data import create_dataset

    try:
        return create_dataset(name, root=None if root is None else str(root), split=split, input_img_mode=mode, **keys)
    except Exception as error:
        raise _unopened(name, error) from error


def _unopened(name: str, error: Exception) -> DataError:
    return DataError(f"{name!r} cannot be opened: {error}", "check its name, --split, and where it lies, --data-dir")
