"""Opening images, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from ..errors import DataError, Vit2SnnError
from .folders import open_folder
from .hub import open_hub, open_hub_stream
from .library import open_tensorflow, open_torchvision
from .names import used
from .pictures import UnreadableError
from .shards import open_shards
from .sources import ImageSource, Pending

TORCHVISION = "torch/"
PACKAGES = {
    TORCHVISION: ("torchvision", "torchvision"),
    "hfds/": ("datasets", "'vit2snn[hfds]'"),
    "hfids/": ("datasets", "'vit2snn[hfds]'"),
    "tfds/": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
}
"""Of a prefix, the package that reads what it names, and what pip installs it."""
READERS = {"hfds/": open_hub, "hfids/": open_hub_stream, "wds/": open_shards, "tfds/": open_tensorflow}


def open_images(
    data: str | Path,
    split: str,
    *,
    classes: int,
    mode: str = "RGB",
    root: str | Path | None = None,
    class_map: str | Path | None = None,
    labels: str | Path | None = None,
    skipped: Callable[[UnreadableError], None] | None = None,
) -> ImageSource:
    """Open a folder of class folders, or a data set.

    Args:
        data: a folder or a tar file of class folders, or of folders of splits that hold them; or ``hfds/NAME``, ``hfids/NAME``,
            ``wds/NAME``, ``tfds/NAME``, ``torch/NAME``.
        split: ``train``, ``validation`` or another; see `vit2snn.data.folders.part_of`.
        classes: how many classes the model tells apart; 0 for a model without classes: those that the data has, if it has any.
        mode: PIL's image mode, ``RGB`` or ``L``.
        root: where a prefixed data set lies, or may be cached.
        class_map: a text file of the model's classes; see `vit2snn.data.names.read_class_map`.
        labels: a table of the images of a folder and their classes; see `vit2snn.data.folders.open_folder`.
        skipped: is told of images that cannot be read, which are passed over then; see `ImageSource`.

    Raises:
        DataError: it cannot be opened, holds no images of the split, or its classes are not those of the model.
    """
    name = str(data)
    prefix = next((prefix for prefix in (*READERS, TORCHVISION) if name.startswith(prefix)), None)
    if prefix is None:
        source = open_folder(data, split, classes, mode, class_map, labels)
    else:
        if labels is not None:
            raise DataError(f"--labels lists images of a folder, and {name!r} has labels of its own", "leave --labels out")
        if prefix == "tfds/" and skipped is not None:
            raise DataError(f"{name!r} is decoded by TensorFlow, which passes over nothing", "leave --skip-bad out")
        source = _open_data_set(prefix, name, split, classes, mode, root, class_map)
    if source.labels is None:
        return replace(source, stream=lambda: _checked(source.stream(), name, classes), skipped=skipped)
    if not source.labels:
        raise DataError(f"{name!r} holds no images", "choose another --split")
    if classes and not 0 <= min(source.labels) <= max(source.labels) < classes:
        raise DataError(
            f"{name!r} has labels from {min(source.labels)} to {max(source.labels)}, the model tells {classes} classes apart",
            "check that model and data set belong together",
        )
    return replace(source, notes=(*source.notes, *used(source.labels, classes)), skipped=skipped)


def _open_data_set(
    prefix: str, name: str, split: str, classes: int, mode: str, root: str | Path | None, class_map: str | Path | None
) -> ImageSource:
    package, wanted = PACKAGES.get(prefix, ("", ""))
    if package and find_spec(package) is None:
        raise DataError(f"{name!r} is read by {package}, which is not installed", f"pip install {wanted}")
    if prefix in READERS:
        return READERS[prefix](name, split, classes, mode, root, class_map)
    if class_map is not None:
        raise DataError(f"{name!r} has classes of its own, in its own order", "leave --class-map out")
    return open_torchvision(name, split, mode, root)


def _checked(stream: Iterator[Pending], name: str, classes: int) -> Iterator[Pending]:
    count = 0
    try:
        for image, label in stream:
            if classes and not 0 <= label < classes:
                raise DataError(
                    f"an image of {name!r} has label {label}, the model tells {classes} classes apart",
                    "check that model and data set belong together",
                )
            yield image, label
            count += 1
    except Vit2SnnError:
        raise
    except Exception as error:  # of what is damaged or far away, libraries raise whatever they run into
        raise DataError(f"{name!r} cannot be read after {count} images: {error}") from error
