"""Event-camera recordings as frames ``[T, 2, H, W]``: how many events of each polarity fell on a pixel in each timestep.

Recordings are read by tonic (``pip install 'vit2snn[events]'``), which knows the neuromorphic data sets.
"""

from __future__ import annotations

import inspect
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import DataError
from .folders import part_of
from .names import class_order, read_class_map, used
from .pictures import UnreadableError, unreadable
from .splits import TEST, TRAINING, VALIDATION
from .trees import Tree, is_hidden, open_tree

PREFIX = "tonic/"
RECORDINGS = (".bs2", ".bin")
"""N-MNIST's file format, under its two names."""
EVENT_BYTES = 5


@dataclass(frozen=True)
class EventSource:
    """Recordings that can be read by index.

    Attributes:
        labels: of each recording.
        read: the structured array of events, with fields x, y, t (microseconds) and p, by index.
        sensor_size: of the camera, ``(W, H, 2)``.
        split: what it is called where it was found.
        notes: what a user should know of them, a sentence each.
        skipped: was told of those that cannot be read; None where such are errors.
    """

    labels: list[int]
    read: Callable[[int], Any]
    sensor_size: tuple[int, int, int]
    split: str
    notes: tuple[str, ...] = ()
    skipped: Callable[[UnreadableError], None] | None = None

    def subset(self, indices: Sequence[int]) -> EventSource:
        """Some of the recordings, in that order."""
        labels = [self.labels[index] for index in indices]
        return replace(self, labels=labels, read=lambda index: self.read(indices[index]))

    def frames(self, index: int, timesteps: int, size: tuple[int, int]) -> Tensor:
        """A recording cut into ``timesteps`` of equal length: float counts ``[timesteps, 2, H, W]``, channel 1 is ON.

        Args:
            index: of the recording.
            timesteps: T.
            size: height and width; the counts are averaged where that is smaller than the sensor, repeated where larger.

        Raises:
            DataError: the number of timesteps is below 1.
        """
        from tonic.transforms import ToFrame

        if timesteps < 1:
            raise DataError(
                "the model leaves open into how many timesteps a recording is cut",
                "say it with --timesteps T, or train with -a timesteps=T",
            )

        events = self.read(index)
        if not len(events):
            return torch.zeros(timesteps, 2, *size)
        counts = torch.from_numpy(ToFrame(sensor_size=self.sensor_size, n_time_bins=timesteps)(events)).float()
        return counts if counts.shape[-2:] == size else functional.interpolate(counts, size, mode="area")


def is_events(data: str) -> bool:
    """Whether ``data`` names recordings: ``tonic/NAME``, or a folder of class folders that hold N-MNIST files."""
    if data.startswith(PREFIX):
        return True
    files = (path for path in Path(data).glob("*/*/*") if not any(map(is_hidden, path.relative_to(data).parts)))
    return any(path.suffix.lower() in RECORDINGS for path in islice(files, 20))  # there may be a million images


def open_events(
    data: str,
    split: str,
    *,
    classes: int,
    root: str | None = None,
    class_map: str | Path | None = None,
    skipped: Callable[[UnreadableError], None] | None = None,
) -> EventSource:
    """Open recordings.

    Args:
        data: ``tonic/NMNIST``, ``tonic/DVSGesture``, or another data set of tonic by its class name; or a folder
            ``data/{train,test}/CLASS/`` of N-MNIST recordings (``.bs2`` or ``.bin``). A data set without a split, such as
            CIFAR10-DVS, is cut after nine tenths of each class.
        split: ``train``, or ``test``, which ``validation`` also means; of a folder, see `vit2snn.data.folders.part_of`.
        classes: how many classes the model tells apart.
        root: where tonic keeps the data set.
        class_map: of a folder; see `vit2snn.data.names.read_class_map`.
        skipped: is told of recordings that cannot be read, which are passed over then; all are read for that.

    Raises:
        DataError: tonic is not installed, does not know the data set, there are no recordings, or they have other classes.
    """
    if not data.startswith(PREFIX):
        source = _folder(data, split, classes, class_map)
    elif class_map is None:
        source = _data_set(data, split, root)
    else:
        raise DataError(f"{data!r} has classes of its own, in its own order", "leave --class-map out")
    if skipped is not None:
        source = _readable(source, skipped)
    if not source.labels:
        raise DataError(f"{data!r} holds no recordings that can be read", "choose another --split")
    if max(source.labels) >= classes:
        raise DataError(
            f"{data!r} has labels up to {max(source.labels)}, the model tells {classes} classes apart",
            "check that model and data set belong together",
        )
    return replace(source, notes=(*source.notes, *used(source.labels, classes)))


def _tonic() -> Any:
    try:
        import tonic
    except ImportError as error:
        raise DataError("recordings are read by tonic, which is not installed", "pip install 'vit2snn[events]'") from error
    return tonic


def _data_set(data: str, split: str, root: str | None) -> EventSource:
    kind = getattr(_tonic().datasets, data.removeprefix(PREFIX), None)
    if kind is None:
        raise DataError(f"tonic has no data set {data.removeprefix(PREFIX)!r}", "write tonic/NMNIST, tonic/DVSGesture, ...")
    has_split = "train" in inspect.signature(kind).parameters
    if split.lower() not in (*TRAINING, *VALIDATION, *TEST):
        raise DataError(f"{data!r} has no split {split!r}, but 'train' and 'test'", "say which is meant with --split")
    train = split.lower() in TRAINING
    try:
        dataset = kind(save_to=root or "data", **({"train": train} if has_split else {}))
    except Exception as error:
        raise DataError(f"{data!r} cannot be opened: {error}", "say where it lies with --data-dir") from error
    labels = [int(label) for label in dataset.targets]
    chosen = list(range(len(labels))) if has_split else _part(labels, train)

    def read(index: int) -> Any:
        return _checked(lambda: dataset[chosen[index]][0], dataset.sensor_size, f"recording {chosen[index]} of {data!r}")

    part = "train" if train else "test"
    note = f"{len(chosen)} recordings are in the split {part!r} of {data}"
    return EventSource([labels[i] for i in chosen], read, dataset.sensor_size, part, (note,))


def _part(labels: list[int], train: bool) -> list[int]:
    """The first nine tenths of each class, or the last: the custom where a data set has no split, as CIFAR10-DVS."""
    total, seen, chosen = Counter(labels), Counter[int](), []
    for index, label in enumerate(labels):
        seen[label] += 1
        if (seen[label] <= 0.9 * total[label]) == train:
            chosen.append(index)
    return chosen


def _folder(data: str, split: str, classes: int, class_map: str | Path | None) -> EventSource:
    """The recordings of a split; the classes are those of all splits, or of a class map."""
    tonic = _tonic()
    tree = open_tree(data)
    part = part_of(tree, split, flat=True)
    around = posixpath.dirname(part)
    by_class = {name: _recordings(tree, posixpath.join(part, name)) for name in sorted(tree.listed(part).folders) if part}
    files = [(path, name) for name, paths in by_class.items() for path in paths]
    if not files:
        raise DataError(f"{tree.told(part)} holds no recordings ({' or '.join(RECORDINGS)}) in class folders")
    names = {
        name for other in tree.listed(around).folders for name in tree.listed(posixpath.join(around, other)).folders
        if _recordings(tree, posixpath.join(around, other, name))
    }  # fmt: skip
    order = class_order(names, classes, data) if class_map is None else read_class_map(class_map, classes, names)

    def recorded(path: str) -> Any:
        with tree.opened(path) as file:
            content = file.read()
        if not content or len(content) % EVENT_BYTES:
            raise ValueError(f"it has {len(content)} bytes, and an event {EVENT_BYTES}: it is empty or cut off")
        return tonic.io.read_mnist_file(BytesIO(content), dtype=tonic.datasets.NMNIST.dtype, is_stream=True)

    def read(index: int) -> Any:
        path = files[index][0]
        return _checked(lambda: recorded(path), tonic.datasets.NMNIST.sensor_size, tree.told(path))

    note = f"{len(files)} recordings are in {Path(tree.place, part)}"
    return EventSource([order[name] for _, name in files], read, tonic.datasets.NMNIST.sensor_size, part, (note,))


def _recordings(tree: Tree, folder: str) -> list[str]:
    """The paths of the recordings in a folder, sorted."""
    names = sorted(name for name in tree.listed(folder).others if PurePath(name).suffix.lower() in RECORDINGS)
    return [posixpath.join(folder, name) for name in names]


def _checked(read: Callable[[], Any], sensor_size: tuple[int, int, int], name: str) -> Any:
    """Events that lie on the sensor.

    Raises:
        UnreadableError: they do not, or the recording is damaged.
    """
    try:
        events = read()
        if len(events):
            x, y = int(events["x"].max()), int(events["y"].max())
            if x >= sensor_size[0] or y >= sensor_size[1]:
                raise ValueError(f"it has events at x = {x}, y = {y}, its sensor {sensor_size[0]} x {sensor_size[1]} pixels")
        return events
    except Exception as error:  # of damaged files tonic raises whatever its readers run into
        raise unreadable(name, "a recording", error) from error


def _readable(source: EventSource, skipped: Callable[[UnreadableError], None]) -> EventSource:
    """The recordings of a source that can be read."""
    chosen = []
    for index in range(len(source.labels)):
        try:
            source.read(index)
            chosen.append(index)
        except UnreadableError as error:
            skipped(error)
    return replace(source.subset(chosen), skipped=skipped)
