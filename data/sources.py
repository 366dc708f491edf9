"""Where images come from: folders and the prefixed data sets of timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import IterableDataset

from ..errors import DataError

PREFIXES = ("hfds/", "hfids/", "wds/", "tfds/", "torch/")


@dataclass(frozen=True)
class ImageSource:
    """Images that can be read by index, or only in order.

    Attributes:
        labels: the label of each image; None for a stream, whose labels are known only when it is read.
        read: image and label by index, in several threads at once; None for a stream.
        stream: images and labels in order.
        order: the indices in which images are chosen, where that is settled already.
    """

    labels: list[int] | None
    read: Callable[[int], tuple[Image.Image, int]] | None
    stream: Callable[[], Iterator[tuple[Image.Image, int]]]
    order: Sequence[int] | None = None


def array_source(images: np.ndarray, labels: np.ndarray, mode: str | None = None) -> ImageSource:
    """Images held in memory: bytes ``[N, H, W]`` or ``[N, H, W, 3]``, and labels ``[N]``; ``mode`` is PIL's, if another."""
    known = [int(label) for label in labels]

    def read(index: int) -> tuple[Image.Image, int]:
        image = Image.fromarray(images[index])
        return image.convert(mode) if mode else image, known[index]

    return ImageSource(known, read, lambda: map(read, range(len(known))))


def open_images(
    data: str | Path,
    split: str,
    *,
    classes: int,
    mode: str = "RGB",
    root: str | Path | None = None,
    class_map: str | Path | None = None,
) -> ImageSource:
    """Open a folder of class folders, or a data set that timm reads.

    Args:
        data: a folder (a sub-folder of the split's name, such as ``train`` or ``val``, is used if there is one), a tar file
            of class folders, or ``hfds/NAME``, ``hfids/NAME``, ``wds/NAME``, ``tfds/NAME``, ``torch/NAME``.
        split: ``train`` or ``validation``.
        classes: how many classes the model tells apart.
        mode: PIL's image mode, ``RGB`` or ``L``.
        root: where a prefixed data set lies, or may be cached.
        class_map: a text file of class folder names, one a line, in the order of the model's classes.

    Raises:
        DataError: it cannot be opened, holds no images, or its classes are not those of the model.
    """
    from timm.data import create_dataset

    name, place = (str(data), root) if str(data).startswith(PREFIXES) else ("", data)
    if not name and not Path(data).exists():
        raise DataError(f"there is no folder {str(data)!r}", f"give a folder, or a data set: {', '.join(PREFIXES)}...")
    if class_map is not None:
        _check_class_map(Path(class_map), classes)
    try:
        dataset = create_dataset(
            name, root=str(place) if place else None, split=split, class_map=str(class_map) if class_map else None,
            input_img_mode=mode,
        )  # fmt: skip
    except Exception as error:
        raise DataError(f"the images of {str(data)!r} cannot be opened: {error}") from error
    if isinstance(dataset, IterableDataset):
        return ImageSource(None, None, lambda: _checked(dataset, classes))
    labels, read = _random_access(dataset, str(data), mode)
    _check_classes(dataset, labels, classes, str(data), class_map is not None)
    return ImageSource(labels, read, lambda: map(read, range(len(labels))))


def _random_access(dataset: Any, data: str, mode: str) -> tuple[list[int], Callable[[int], tuple[Image.Image, int]]]:
    """Labels and a reader; timm's own ``dataset[i]`` replaces an unreadable image by the next one, which would be scored."""
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    reader = getattr(dataset, "reader", None)
    if reader is None:  # torchvision
        labels = [int(label) for label in getattr(dataset, "targets", getattr(dataset, "labels", ()))]
        return labels, lambda index: (dataset[index][0].convert(mode), labels[index])
    in_tar = isinstance(reader, ReaderImageInTar)
    if in_tar:
        labels = [int(label) for label in reader.targets]
    elif hasattr(reader, "samples"):
        labels = [int(sample[1]) for sample in reader.samples]
    else:
        labels = [int(label) for label in reader.iter_targets()]

    # The images of a tar file are read through one handle, by one thread at a time.
    turn: AbstractContextManager[Any] = Lock() if in_tar else nullcontext()

    def read(index: int) -> tuple[Image.Image, int]:
        try:
            with turn, reader[index][0] as file, Image.open(file) as image:
                return image.convert(mode), labels[index]
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise DataError(
                f"{dataset.filename(index)!r} in {data!r} is not an image that can be read: {error}",
                "remove or replace it",
            ) from error

    return labels, read


def _checked(dataset: Any, classes: int) -> Iterator[tuple[Image.Image, int]]:
    for image, label, *_ in dataset:
        if not 0 <= int(label) < classes:
            raise DataError(f"an image has label {int(label)}, the model tells {classes} classes apart")
        yield image, int(label)


def _check_class_map(path: Path, classes: int) -> None:
    if path.suffix != ".txt":
        raise DataError(f"the class map {str(path)!r} is not a .txt file", "write one class folder name a line")
    try:
        names = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the class map {str(path)!r} cannot be read: {error}") from error
    if len(names) != classes:
        raise DataError(
            f"the class map {str(path)!r} names {len(names)} classes, the model tells {classes} apart",
            "it needs one line for each class of the model, in the model's order",
        )


def _check_classes(dataset: Any, labels: list[int], classes: int, data: str, mapped: bool) -> None:
    if not labels:
        raise DataError(f"{data!r} holds no images", "with --class-map, class folders must bear the names it lists")
    if not 0 <= min(labels) <= max(labels) < classes:
        raise DataError(
            f"{data!r} has labels from {min(labels)} to {max(labels)}, the model tells {classes} classes apart",
            "check that model and data set belong together",
        )
    reader = getattr(dataset, "reader", None)
    folders = getattr(reader, "class_to_idx", getattr(reader, "class_name_to_idx", None))  # the latter of a tar file
    if folders is None:
        return
    if not mapped and len(folders) != classes:
        raise DataError(
            f"{data!r} has {len(folders)} class folders, the model tells {classes} classes apart",
            "name the model's classes in order with --class-map FILE (one class folder name a line)",
        )
    root = getattr(reader, "root", None)
    if mapped and root and Path(root).is_dir():
        strange = sorted(p.name for p in Path(root).iterdir() if p.is_dir() and p.name not in folders)
        if strange:
            raise DataError(
                f"{data!r} has {len(strange)} class folders that the class map does not list, such as {strange[0]!r}",
                "check that class map and data set belong together",
            )
