"""Event-camera recordings as frames ``[T, 2, H, W]``: how many events of each polarity fell on a pixel in each timestep.

Recordings are read by tonic (``pip install 'vit2snn[events]'``), which knows the neuromorphic data sets.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import DataError

PREFIX = "tonic/"
RECORDINGS = (".bs2", ".bin")
"""N-MNIST's file format, under its two names."""


@dataclass(frozen=True)
class EventSource:
    """Recordings that can be read by index.

    Attributes:
        labels: of each recording.
        read: the structured array of events, with fields x, y, t (microseconds) and p, by index.
        sensor_size: of the camera, ``(W, H, 2)``.
    """

    labels: list[int]
    read: Callable[[int], Any]
    sensor_size: tuple[int, int, int]

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
    beginning = islice(Path(data).glob("*/*/*"), 20)  # of a folder that may hold a million images
    return data.startswith(PREFIX) or any(path.suffix in RECORDINGS for path in beginning)


def open_events(data: str, split: str, *, classes: int, root: str | None = None) -> EventSource:
    """Open recordings.

    Args:
        data: ``tonic/NMNIST``, ``tonic/DVSGesture``, or another data set of tonic by its class name; or a folder
            ``data/{train,test}/CLASS/`` of N-MNIST recordings (``.bs2`` or ``.bin``). A data set without a split, such as
            CIFAR10-DVS, is cut after nine tenths of each class.
        split: ``train``, or any other for the test set.
        classes: how many classes the model tells apart.
        root: where tonic keeps the data set.

    Raises:
        DataError: tonic is not installed, does not know the data set, there are no recordings, or they have other classes.
    """
    source = _data_set(data, split, root) if data.startswith(PREFIX) else _folder(Path(data), split)
    if max(source.labels) >= classes:
        raise DataError(
            f"{data!r} has labels up to {max(source.labels)}, the model tells {classes} classes apart",
            "check that model and data set belong together",
        )
    return source


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
    try:
        dataset = kind(save_to=root or "data", **({"train": split == "train"} if has_split else {}))
    except Exception as error:
        raise DataError(f"{data!r} cannot be opened: {error}", "say where it lies with --data-dir") from error
    labels = [int(label) for label in dataset.targets]
    chosen = list(range(len(labels))) if has_split else _part(labels, split == "train")
    return EventSource([labels[i] for i in chosen], lambda index: dataset[chosen[index]][0], dataset.sensor_size)


def _part(labels: list[int], train: bool) -> list[int]:
    """The first nine tenths of each class, or the last: the custom where a data set has no split, as CIFAR10-DVS."""
    total, seen, chosen = Counter(labels), Counter[int](), []
    for index, label in enumerate(labels):
        seen[label] += 1
        if (seen[label] <= 0.9 * total[label]) == train:
            chosen.append(index)
    return chosen


def _folder(root: Path, split: str) -> EventSource:
    tonic = _tonic()
    folder = root / ("train" if split == "train" else "test")
    files = sorted(path for path in folder.glob("*/*") if path.suffix in RECORDINGS)
    if not files:
        raise DataError(f"{str(folder)!r} holds no recordings ({' or '.join(RECORDINGS)}) in class folders")
    classes = {name: label for label, name in enumerate(sorted({path.parent.name for path in root.glob("*/*/*")}))}
    return EventSource(
        [classes[path.parent.name] for path in files],
        lambda index: tonic.io.read_mnist_file(str(files[index]), dtype=tonic.datasets.NMNIST.dtype),
        tonic.datasets.NMNIST.sensor_size,
    )
