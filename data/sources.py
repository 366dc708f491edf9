"""What images are read from, as the rest of the package sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from .pictures import UnreadableError

Labelled = tuple[Image.Image, int]
UNLABELLED = -1
"""The label of an image that has none."""
Pending = tuple[Callable[[], Image.Image], int]
"""An image that is not read yet, and its label."""


@dataclass(frozen=True)
class ImageSource:
    """Images that can be read by index, or only in order.

    Attributes:
        labels: the label of each image; None for a stream, whose labels are known only when it is read.
        read: image and label by index, in several threads at once; None for a stream.
        stream: images and labels in order; the images may be read in several threads at once, or not at all.
        split: what it is called where it was found; empty where the data has none.
        order: the indices in which images are chosen, where that is settled already.
        notes: what a user should know of them, a sentence each, such as which folder they are from.
        skipped: is told of each image that cannot be read and is passed over, by several threads at once, and maybe more than
            once; None where such an image is an error.
    """

    labels: list[int] | None
    read: Callable[[int], Labelled] | None
    stream: Callable[[], Iterator[Pending]]
    split: str = ""
    order: Sequence[int] | None = None
    notes: tuple[str, ...] = ()
    skipped: Callable[[UnreadableError], None] | None = None


def indexed(labels: list[int], read: Callable[[int], Image.Image], *notes: str, split: str = "") -> ImageSource:
    """Images of known labels that are read by index."""

    def labelled(index: int) -> Labelled:
        return read(index), labels[index]

    def stream() -> Iterator[Pending]:
        return ((partial(read, index), label) for index, label in enumerate(labels))

    return ImageSource(labels, labelled, stream, split, notes=notes)


def array_source(images: np.ndarray, labels: np.ndarray, mode: str | None = None) -> ImageSource:
    """Images held in memory: bytes ``[N, H, W]`` or ``[N, H, W, 3]``, and labels ``[N]``; ``mode`` is PIL's, if another."""

    def read(index: int) -> Image.Image:
        image = Image.fromarray(images[index])
        return image.convert(mode) if mode else image

    return indexed([int(label) for label in labels], read)
