"""Refusing, before the work begins, what takes more memory than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit2snn.errors import OutOfMemoryError

if TYPE_CHECKING:
    from vit2snn.data import ImageSource


def check_memory(source: ImageSource, count: int, size: Sequence[int]) -> None:
    """Refuse more images than the machine can hold, before they are read. How many a stream has is not known.

    Args:
        source: of the images.
        count: how many are asked for.
        size: ``[C, H, W]`` of an image.

    Raises:
        OutOfMemoryError: it cannot.
    """
    images = 0 if source.labels is None else min(count, len(source.labels))
    needed = 2 * images * math.prod(size) * 4  # one by one, and in one tensor
    fewer = images * memory() // max(needed, 1) // 2
    check_fits(f"{images} images of {'x'.join(map(str, size))}", needed, f"take fewer: --samples {fewer}")


def check_fits(what: str, needed: int, hint: str) -> None:
    """Refuse what needs more bytes than the machine has, however few of them others take.

    Raises:
        OutOfMemoryError: it does.
    """
    if needed > memory():
        raise OutOfMemoryError(
            f"{what} take {needed / 1e9:.0f} GB of memory, and this machine has {memory() / 1e9:.0f} GB", hint
        )


def memory() -> int:
    """Bytes that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
