"""Data sets of Hugging Face's ``datasets``: the columns of images and labels are found by type and name."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ..errors import DataError
from .names import class_order, read_class_map
from .pictures import decoded
from .sources import ImageSource, indexed

IMAGES = ("image", "img", "pixel_values", "picture", "photo")
LABELS = ("label", "labels", "fine_label", "target", "class")
"""Names by which a column is chosen of several that may be meant, the preferred first."""


def open_hub(
    name: str, split: str, classes: int, mode: str, root: str | Path | None = None, class_map: str | Path | None = None
) -> ImageSource:
    """A data set that lies in a folder or on the hub, all of it on this machine.

    Args:
        name: as `datasets.load_dataset` takes it.
        split: as in the data set, ``test`` for one.
        classes: how many classes the model tells apart.
        mode: PIL's image mode, ``RGB`` or ``L``.
        root: where it may be cached.
        class_map: see `vit2snn.data.names.read_class_map`.

    Raises:
        DataError: it cannot be opened, or has no column of images, or none of labels, that is certain to be meant.
    """
    import datasets

    place = f"hfds/{name}"
    try:
        table = datasets.load_dataset(name, split=split, cache_dir=None if root is None else str(root))
    except Exception as error:
        raise DataError(f"{place!r} cannot be opened: {error}", "say which split is meant with --split") from error
    image, label = columns(table.features, place)
    labels = _labels(list(table[label]), table.features[label], classes, place, class_map)
    files = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(index: int) -> Image.Image:
        return decoded(lambda: _opened(files[index][image]), mode, f"image {index} of {place!r}")

    note = f"{len(labels)} images are in the split {split!r} of {place}: {image!r}, with the label {label!r}"
    return indexed(labels, read, note)


def columns(features: Mapping[str, Any], place: str) -> tuple[str, str]:
    """The column of images, and that of labels.

    Raises:
        DataError: there is none, or several of which none has a usual name.
    """
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [name for name in LABELS if kinds.get(name) == "Value"]
    found = [_only(images, IMAGES), _only(labels, LABELS)]
    for what, column in zip(("images", "labels"), found, strict=True):
        if column is None:
            told = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise DataError(f"{place!r} has no column that is certain to be the {what}: {told}", "rename the one that is meant")
    return str(found[0]), str(found[1])


def _only(names: list[str], preferred: tuple[str, ...]) -> str | None:
    known = [name for name in preferred if name in names]
    return known[0] if known else names[0] if len(names) == 1 else None


def _labels(values: list[Any], feature: Any, classes: int, place: str, class_map: str | Path | None) -> list[int]:
    """The labels of a column: numbers, or the names of a `ClassLabel` or of text."""
    missing = sum(value is None or value == -1 for value in values)
    if missing:
        raise DataError(f"{missing} of {len(values)} images of {place!r} have no label", "choose another --split")
    named = getattr(feature, "names", None)
    if named is None and all(isinstance(value, int) for value in values):
        return values
    names = [named[value] if named else str(value) for value in values]
    if class_map is not None:
        order = read_class_map(class_map, classes, set(names))
    else:
        order = class_order(named or set(names), classes, place, "classes")
    return values if named and class_map is None else [order[name] for name in names]


def _opened(cell: Mapping[str, Any] | None) -> BinaryIO:
    if not cell or not (cell["bytes"] or cell["path"]):
        raise OSError("there is none")
    return BytesIO(cell["bytes"]) if cell["bytes"] else Path(cell["path"]).open("rb")
