"""Data sets of Hugging Face's ``datasets``: the columns of images and labels are found by type and name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ..errors import DataError
from .names import class_order, labels_as_they_come, read_class_map, some
from .pictures import decoded
from .sources import ImageSource, Pending, indexed
from .splits import SOUGHT, find_split

IMAGES = ("image", "img", "pixel_values", "picture", "photo")
LABELS = ("label", "labels", "fine_label", "target", "class", "cls")
"""Names by which a column is chosen of several that may be meant, the preferred first."""


def open_hub(
    name: str, split: str, classes: int, mode: str, root: str | Path | None = None, class_map: str | Path | None = None
) -> ImageSource:
    """A data set that lies in a folder or on the hub, all of it on this machine: ``hfds/NAME``.

    Args:
        name: with its prefix; the rest is as `datasets.load_dataset` takes it.
        split: one of its splits, as `find_split` finds it, or what else ``datasets`` takes, ``train[:10%]`` for one.
        classes: how many classes the model tells apart.
        mode: PIL's image mode, ``RGB`` or ``L``.
        root: where it may be cached.
        class_map: see `vit2snn.data.names.read_class_map`.

    Raises:
        DataError: it cannot be opened, or has no column of images, or none of labels, that is certain to be meant.
    """
    found, table = _loaded(name, split, root, streaming=False)
    image, label = columns(table.features, name)
    labels = _labels(list(table[label]), table.features[label], classes, name, class_map)
    files = _undecoded(table, image)

    def read(index: int) -> Image.Image:
        return decoded(lambda: _opened(files[index][image]), mode, f"image {index} of {name!r}")

    note = f"{len(labels)} images are in the split {found!r} of {name}: {image!r}, with the label {label!r}"
    return indexed(labels, read, note, split=found)


def open_hub_stream(
    name: str, split: str, classes: int, mode: str, root: str | Path | None = None, class_map: str | Path | None = None
) -> ImageSource:
    """The same of ``hfids/NAME``, whose images come in order, and from wherever they are only as they are asked for."""
    found, table = _loaded(name, split, root, streaming=True)
    if not table.features:
        raise DataError(f"{name!r} does not say what its columns are", f"have all of it read: hfds/{name.split('/', 1)[1]}")
    image, label = columns(table.features, name)
    names = getattr(table.features[label], "names", None)
    labelled = labels_as_they_come(names, classes, name, class_map)
    rows = _undecoded(table, image, label)

    def stream() -> Iterator[Pending]:
        for index, row in enumerate(rows):
            opened = partial(_opened, row[image])
            yield partial(decoded, opened, mode, f"image {index} of {name!r}"), labelled(row[label])

    note = f"images are of the split {found!r} of {name}: {image!r}, with the label {label!r}"
    return ImageSource(None, None, stream, found, notes=(note,))


def _loaded(name: str, split: str, root: str | Path | None, streaming: bool) -> tuple[str, Any]:
    """The split that is meant, and its table."""
    import datasets

    place, cache = name.split("/", 1)[1], None if root is None else str(root)
    try:
        # What is no usual name may be a part of a split, which only ``datasets`` understands.
        names = datasets.get_dataset_split_names(place, cache_dir=cache) if split.lower() in SOUGHT else [split]
        found = find_split(split, names)
        table = datasets.load_dataset(place, split=found, cache_dir=cache, streaming=streaming) if found else None
    except Exception as error:
        raise DataError(
            f"{name!r} cannot be opened: {error}", "check its name, and say which split is meant: --split"
        ) from error
    if found is None:
        raise DataError(f"{name!r} has no split {split!r}, but {some(names)}", f"say which is meant: --split {names[0]}")
    return found, table


def _undecoded(table: Any, image: str, *others: str) -> Any:
    """Some columns of a table, with files in the place of images."""
    import datasets

    return table.select_columns([image, *others]).cast_column(image, datasets.Image(decode=False))


def columns(features: Mapping[str, Any], place: str) -> tuple[str, str]:
    """The column of images, and that of labels.

    Raises:
        DataError: there is none, or several of which none has a usual name.
    """
    kinds = {name: _kind(feature) for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    images = images or [name for name in IMAGES if kinds.get(name) in ("binary", "bytes and path")]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [name for name in LABELS if type(features.get(name)).__name__ == "Value"]
    found = [_only(images, IMAGES), _only(labels, LABELS)]
    for what, column in zip(("images", "labels"), found, strict=True):
        if column is None:
            told = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise DataError(f"{place!r} has no column that is certain to be the {what}: {told}", "rename the one that is meant")
    return str(found[0]), str(found[1])


def _kind(feature: Any) -> str:
    """What a column holds: of plain values which; files that nobody has called images are bytes, alone or with a path."""
    if isinstance(feature, Mapping) and {"bytes", "path"} == set(feature):
        return "bytes and path"
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


def _only(names: list[str], preferred: tuple[str, ...]) -> str | None:
    known = [name for name in preferred if name in names]
    return known[0] if known else names[0] if len(names) == 1 else None


def _labels(values: list[Any], feature: Any, classes: int, place: str, class_map: str | Path | None) -> list[int]:
    """The labels of a column: numbers, or the names of a `ClassLabel` or of text."""
    missing = sum(value is None or value == -1 for value in values)
    if missing:
        raise DataError(f"{missing} of {len(values)} images of {place!r} have no label", "choose another --split")
    named = getattr(feature, "names", None)
    if named is None and class_map is None and all(isinstance(value, int) for value in values):
        return values
    names = [named[value] if named else str(value) for value in values]
    if class_map is not None:
        order = read_class_map(class_map, classes, set(names))
    else:
        order = class_order(named or set(names), classes, place, "classes")
    return values if named and class_map is None else [order[name] for name in names]


def _opened(cell: Mapping[str, Any] | None) -> BinaryIO:
    """The file in a cell, which holds it or tells where it is; of a stream, that may be inside of an archive far away."""
    if not cell or not (cell["bytes"] or cell["path"]):
        raise OSError("there is none")
    if cell["bytes"]:
        return BytesIO(cell["bytes"])
    import fsspec

    file: BinaryIO = fsspec.open(cell["path"], "rb").open()
    return file
