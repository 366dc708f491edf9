"""Batches to train on: in a seeded order, and augmented, so that neither workers, processes nor a resumed run change them."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from ..errors import DataError, Vit2SnnError
from .ahead import ahead
from .events import EventSource
from .images import pinned
from .names import natural
from .pictures import UnreadableError, decoded, is_image
from .sources import UNLABELLED, ImageSource, indexed
from .subset import balanced_order, readable
from .trees import open_tree

Item = tuple[Tensor, Any]
Place = tuple[int, int]
"""Epoch and index of an item."""


def seed_of(*key: int | str) -> int:
    """A seed of 32 bits for whatever ``key`` names; other keys give unrelated ones."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "big")


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Within this context random numbers (Python's, numpy's, torch's on the CPU) depend on ``key`` alone."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = seed_of(*key)
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied, in timm's terms.

    Attributes:
        scale: least and largest part of the image's area that is cropped.
        hflip: probability of mirroring.
        auto_augment: timm's description, such as ``rand-m9-mstd0.5``; None for none.
        reprob: probability of erasing a random part.
        mixup: α of mixup of the images of a batch; 0 for none.
        cutmix: α of cutmix; 0 for none. Where both are given, each batch has one of them.
        off: only resize and crop as for scoring; mixup and cutmix aside.
    """

    scale: tuple[float, float] = (0.7, 1.0)
    hflip: float = 0.5
    auto_augment: str | None = None
    reprob: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    off: bool = False

    def transform(self, model: nn.Module) -> Any:
        """An image of PIL to a tensor as ``model`` wants it (size, mean, standard deviation).

        Raises:
            DataError: timm does not understand the description, or the crops are out of range.
        """
        from timm.data import create_transform, resolve_model_data_config

        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(
                f"crops are from {self.scale[0]} to {self.scale[1]} of the image", "give --scale LEAST MOST, up to 1"
            )
        config = resolve_model_data_config(model)
        try:
            return create_transform(
                config["input_size"], is_training=True, no_aug=self.off, scale=self.scale, ratio=(0.9, 1.1), color_jitter=None,
                hflip=self.hflip, auto_augment=self.auto_augment, re_prob=self.reprob, interpolation=config["interpolation"],
                mean=config["mean"], std=config["std"],
            )  # fmt: skip
        except (AssertionError, AttributeError, KeyError, IndexError, ValueError) as error:
            raise DataError(f"timm cannot make the augmentation {self}: {error}", "see timm's auto_augment for --aa") from error

    def mix(self, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """Mixup and cutmix of a batch, which turn labels into probabilities ``[B, classes]``; None if there is neither."""
        from timm.data import Mixup

        if not self.mixup and not self.cutmix:
            return None
        mixup: Any = Mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=classes)

        def mix(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            if len(x) % 2:
                raise DataError(f"mixup pairs the images of a batch, and got {len(x)}", "take an even --batch-size")
            mixed: tuple[Tensor, Tensor] = mixup(x, labels.clamp(min=0))  # timm's wants classes, also of unlabelled images
            return mixed

        return mix


class _Items(Dataset[Item | Vit2SnnError]):
    """Items, or why one cannot be read: an error that left a worker as such would come out as another one."""

    def __init__(self, read: Callable[[int], Item], seed: int) -> None:
        self.read, self.seed = read, seed

    def __getitem__(self, place: Place) -> Item | Vit2SnnError:
        try:
            with seeded("item", self.seed, *place):
                return self.read(place[1])
        except Vit2SnnError as error:
            return error


def _passing_errors(collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``collate``, but for a batch with an error the error."""
    return lambda items: next((item for item in items if isinstance(item, Vit2SnnError)), None) or collate(items)


class Places(Sampler[list[Place]]):
    """The places of each batch of one process; see `TrainingLoader`."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch, self.start, self.process, self.processes = 0, 0, 0, 1

    @property
    def size(self) -> int:
        """Items in a batch."""
        return min(self.batch_size, self.count // self.processes)

    @property
    def batches(self) -> int:
        """In a whole epoch."""
        return self.count // (self.size * self.processes) if self.count else 0

    def __len__(self) -> int:
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[Place]]:
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        for step in range(self.start, self.batches):
            first = (step * self.processes + self.process) * self.size
            yield [(self.epoch, index) for index in order[first : first + self.size]]


class TrainingLoader:
    """Batches of one process for the epoch that was set last, until another is.

    The order of an epoch depends on seed and epoch, and what is drawn for an item (crops, mirroring) on seed, epoch and item.
    P processes cut each P-fold batch into P parts, so together they see what one process with the P-fold batch size sees. Items
    that fill no batch are left out, as batch normalisation has no statistics of one image; fewer than a batch make a smaller
    one.

    Args:
        read: input and label of an item by index; may draw from the global random number generators.
        count: items.
        batch_size: of one process.
        seed: see above.
        collate: items to a batch; torch's unless given.
        workers: processes that read ahead.
        mix: turns a batch and its labels into another one; may draw from the global generators. It sees this process's part.

    Attributes:
        pins: whether batches go to pinned memory where there is a GPU, which items on a device cannot.
    """

    pins: ClassVar[bool] = True

    def __init__(
        self, read: Callable[[int], Item], count: int, batch_size: int, seed: int = 0, collate: Any = None, workers: int = 0,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        self.places = Places(count, batch_size, seed)
        self.mix, self.mixed = mix, True
        # The readers are closures, which only a fork inherits.
        context = "fork" if workers and "fork" in multiprocessing.get_all_start_methods() else None
        self._loader: DataLoader[Any] = DataLoader(
            _Items(read, seed), batch_sampler=self.places, collate_fn=_passing_errors(collate or default_collate),
            num_workers=workers,
            multiprocessing_context=context, persistent_workers=workers > 0, pin_memory=self.pins and torch.cuda.is_available(),
            generator=torch.Generator(),
        )  # fmt: skip

    def share(self, process: int, processes: int) -> None:
        """Give the batches of process ``process`` of ``processes`` from now on.

        Raises:
            DataError: there are fewer items than processes.
        """
        if self.places.count < processes:
            raise DataError(
                f"{self.places.count} images cannot be shared by {processes} processes", "give more images, or start fewer"
            )
        self.places.process, self.places.processes = process, processes

    def set_epoch(self, epoch: int, start: int = 0, mixed: bool = True) -> None:
        """Give the batches of an epoch from batch ``start`` on, at the next iteration; not ``mixed``, without mixup."""
        self.places.epoch, self.places.start, self.mixed = epoch, start, mixed

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.places.batches

    def __iter__(self) -> Iterator[Any]:
        """The batches: what ``collate`` makes of them.

        Raises:
            Vit2SnnError: what reading an item of a batch raised, when that batch would come.
        """
        places = self.places
        for step, batch in enumerate(self._loader, start=places.start):
            if isinstance(batch, Vit2SnnError):
                raise batch
            x, labels = batch
            if self.mixed and self.mix is not None:
                with seeded("mix", places.seed, places.epoch, step):
                    x, labels = self.mix(x, labels)
            yield x, labels


def training_images(
    model: nn.Module, source: ImageSource, batch_size: int, seed: int = 0, workers: int = 0,
    augmentation: Augmentation = Augmentation(),
) -> TrainingLoader:  # fmt: skip
    """Images as ``model`` wants them (size, mean, standard deviation), augmented: ``[B, C, H, W]``, and labels ``[B]``.

    Raises:
        DataError: the source is a stream, which cannot be shuffled, has no images, or all its images are of one class.
    """
    if source.read is None or source.labels is None:
        raise DataError("training shuffles its images, and a stream cannot be", "give a folder, hfds/NAME or torch/NAME")
    classes = set(source.labels)
    if not classes:
        raise DataError("there are no images to train on", "give a folder with images to --data")
    if len(classes) == 1 and UNLABELLED not in classes:
        raise DataError(
            f"all {len(source.labels)} training images are of class {classes.pop()}, and a model learns to tell classes apart",
            "give images of several classes to --data",
        )
    labels = source.labels
    chosen = readable(source, range(len(labels)), workers=workers)
    read, transform = source.read, augmentation.transform(model)
    mix = augmentation.mix(int(model.num_classes)) if augmentation.mixup or augmentation.cutmix else None  # type: ignore[arg-type]

    def item(index: int) -> Item:
        image, label = read(chosen[index])
        return transform(image), label

    return TrainingLoader(item, len(chosen), batch_size, seed, workers=workers, mix=mix)


def unlabelled_images(
    folder: str | Path, mode: str = "RGB", skipped: Callable[[UnreadableError], None] | None = None
) -> ImageSource:
    """All images in a folder and below, whatever classes they may have: for training without labels.

    Args:
        folder: of images, or of folders of them; what is hidden is left out.
        mode: PIL's image mode, ``RGB`` or ``L``.
        skipped: is told of images that cannot be read, which are passed over then; see `ImageSource`.

    Raises:
        DataError: there is no such folder, or it holds no images.
    """
    tree = open_tree(folder)
    files = sorted((name for name in tree.below("") if is_image(name)), key=natural)
    if not files:
        raise DataError(f"{str(folder)!r} is no folder that holds images", "give a folder with images to --data")

    def read(index: int) -> Image.Image:
        return decoded(lambda: tree.opened(files[index]), mode, tree.told(files[index]))

    return replace(indexed([UNLABELLED] * len(files), read), skipped=skipped)


def training_events(
    source: EventSource, timesteps: int, size: tuple[int, int], batch_size: int, seed: int = 0, workers: int = 0
) -> TrainingLoader:
    """Frames of recordings, ``[T, B, 2, H, W]``, time first, and labels ``[B]``."""

    def item(index: int) -> Item:
        return source.frames(index, timesteps, size), source.labels[index]

    return TrainingLoader(item, len(source.labels), batch_size, seed, time_first, workers)


def event_batches(
    source: EventSource, timesteps: int, size: tuple[int, int], batch_size: int, count: int | None = None, seed: int = 0,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Frames ``[T, B, 2, H, W]`` and labels ``[B]`` to score: all recordings, or ``count`` of them, class-balanced.

    Threads, as many as ``workers``, read ahead. The frames are in pinned memory where CUDA is in use.
    """
    chosen = range(len(source.labels)) if count is None else balanced_order(source.labels, seed)[:count]
    with closing(ahead(lambda i: (source.frames(i, timesteps, size), source.labels[i]), chosen, workers)) as items:
        while batch := list(islice(items, batch_size)):
            frames, labels = time_first(batch)
            yield pinned(frames), labels


def time_first(items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Frames ``[T, C, H, W]`` and labels to ``[T, B, C, H, W]`` and ``[B]``."""
    return torch.stack([frames for frames, _ in items], 1), torch.tensor([label for _, label in items])
