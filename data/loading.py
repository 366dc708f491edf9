"""Batches to train on: shuffled, and mirrored and shifted for images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .events import EventSource
from .sources import ImageSource
from .subset import balanced_order

Item = tuple[Tensor, int]


class _Items(Dataset[Item]):
    def __init__(self, count: int, read: Callable[[int], Item]) -> None:
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        return self.read(index)


def training_images(model: nn.Module, source: ImageSource, batch_size: int, seed: int = 0) -> DataLoader[Any]:
    """Images as ``model`` wants them (size, mean, standard deviation), cropped at random and mirrored: ``[B, C, H, W]``.

    Raises:
        DataError: the source is a stream, which cannot be shuffled.
    """
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(model)
    transform = create_transform(
        config["input_size"], is_training=True, scale=(0.7, 1.0), ratio=(0.9, 1.1), color_jitter=None,
        interpolation=config["interpolation"], mean=config["mean"], std=config["std"],
    )  # fmt: skip
    if source.read is None or source.labels is None:
        raise DataError("training shuffles its images, and a stream cannot be", "give a folder, hfds/NAME or torch/NAME")
    read = source.read

    def item(index: int) -> Item:
        image, label = read(index)
        return transform(image), label

    return _loader(_Items(len(source.labels), item), batch_size, seed, None)


def training_events(
    source: EventSource, timesteps: int, size: tuple[int, int], batch_size: int, seed: int = 0
) -> DataLoader[Any]:
    """Frames of recordings, ``[T, B, 2, H, W]``, time first."""

    def item(index: int) -> Item:
        return source.frames(index, timesteps, size), source.labels[index]

    return _loader(_Items(len(source.labels), item), batch_size, seed, time_first)


def event_batches(
    source: EventSource, timesteps: int, size: tuple[int, int], batch_size: int, count: int | None = None, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Frames ``[T, B, 2, H, W]`` and labels ``[B]`` to score: all recordings, or ``count`` of them, class-balanced."""
    chosen = range(len(source.labels)) if count is None else balanced_order(source.labels, seed)[:count]
    for start in range(0, len(chosen), batch_size):
        yield time_first([(source.frames(i, timesteps, size), source.labels[i]) for i in chosen[start : start + batch_size]])


def time_first(items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Frames ``[T, C, H, W]`` and labels to ``[T, B, C, H, W]`` and ``[B]``."""
    return torch.stack([frames for frames, _ in items], 1), torch.tensor([label for _, label in items])


def _loader(items: _Items, batch_size: int, seed: int, collate: Any) -> DataLoader[Any]:
    # A last batch of one image would leave batch normalisation without statistics, so what is left over is dropped.
    return DataLoader(
        items, batch_size, shuffle=True, drop_last=len(items) > batch_size, collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
