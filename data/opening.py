"""Opening images, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from ..errors import DataError
from .folders import open_folder
from .hub import open_hub
from .library import open_stream, open_torchvision
from .pictures import UnreadableError
from .sources import ImageSource, Labelled

PACKAGES = {
    "torch/": ("torchvision", "torchvision"),
    "hfds/": ("datasets", "'vit2snn[hfds]'"),
    "hfids/": ("datasets", "'vit2snn[hfds]'"),
    "wds/": ("webdataset", "'vit2snn[wds]'"),
    "tfds/": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
}
"""Of a prefix, the package that reads what it names, and what pip installs it."""


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
        classes: how many classes the model tells apart.
        mode: PIL's image mode, ``RGB`` or ``L``.
        root: where a prefixed data set lies, or may be cached.
        class_map: a text file of the model's classes; see `vit2snn.data.names.read_class_map`.
        labels: a table of the images of a folder and their classes; see `vit2snn.data.folders.open_folder`.
        skipped: is told of images that cannot be read, which are passed over then; see `ImageSource`.

    Raises:
        DataError: it cannot be opened, holds no images of the split, or its classes are not those of the model.
    """
    name = str(data)
    prefix = next((prefix for prefix in PACKAGES if name.startswith(prefix)), None)
    if prefix is None:
        source = open_folder(data, split, classes, mode, class_map, labels)
    else:
        if labels is not None:
            raise DataError(f"--labels lists images of a folder, and {name!r} has labels of its own", "leave --labels out")
        source = _open_data_set(prefix, name, split, classes, mode, root, class_map)
    if source.labels is None:
        return replace(source, stream=lambda: _checked(source.stream(), classes), skipped=skipped)
    if not source.labels:
        raise DataError(f"{name!r} holds no images", "choose another --split")
    if not 0 <= min(source.labels) <= max(source.labels) < classes:
        raise DataError(
            f"{name!r} has labels from {min(source.labels)} to {max(source.labels)}, the model tells {classes} classes apart",
            "check that model and data set belong together",
        )
    return replace(source, skipped=skipped)


def _open_data_set(
    prefix: str, name: str, split: str, classes: int, mode: str, root: str | Path | None, class_map: str | Path | None
) -> ImageSource:
    package, wanted = PACKAGES[prefix]
    if find_spec(package) is None:
        raise DataError(f"{name!r} is read by {package}, which is not installed", f"pip install {wanted}")
    if prefix == "hfds/":
        return open_hub(name.removeprefix(prefix), split, classes, mode, root, class_map)
    if prefix != "torch/":
        return open_stream(name, split, classes, mode, root, class_map)
    if class_map is not None:
        raise DataError(f"{name!r} has classes of its own, in its own order", "leave --class-map out")
    return open_torchvision(name, split, mode, root)


def _checked(stream: Iterator[Labelled], classes: int) -> Iterator[Labelled]:
    for image, label in stream:
        if not 0 <= label < classes:
            raise DataError(f"an image has label {label}, the model tells {classes} classes apart")
        yield image, label
