"""Decoding: the bytes of an image file as 8-bit pixels in the mode that a model takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..errors import DataError

EXTENSIONS = frozenset(
    [
        ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx",
        ".jxl", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
    ]
)  # fmt: skip
"""Files of these names are images: what pictures are kept in. Those that PIL cannot read are then told, and not passed over."""

SLIM = 1000
"""How many times as long as wide an image may be: resized by its shorter side, a longer one would fill the memory."""


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return PurePath(name).suffix.lower() in EXTENSIONS


class UnreadableError(DataError):
    """One image or recording cannot be read, whatever the others."""


def unreadable(name: str, what: str, why: object) -> UnreadableError:
    """The error that an image, or whatever else it is to be, cannot be read."""
    return UnreadableError(f"{name} is not {what} that can be read: {why}", "remove or replace it, or give --skip-bad")


def decoded(opened: Callable[[], BinaryIO], mode: str, name: str) -> Image.Image:
    """The image in a file, or the first in a file of several; as in timm and torchvision, EXIF's rotation is not applied.

    Args:
        opened: opens the file.
        mode: see `as_mode`.
        name: of the image, for the error.

    Raises:
        UnreadableError: there is no such file, or it is not an image, cut off, huge, or of pixels whose white is unknown.
    """
    try:
        with opened() as file, Image.open(file) as image:
            return as_mode(image, mode)
    except Exception as error:  # of damaged files PIL raises whatever its readers run into
        raise unreadable(name, "an image", error) from error


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image in PIL's mode ``RGB`` or ``L``.

    Of 16 bits the upper 8 are kept, in gray as PIL does it in colour. Transparent pixels show the colour that they hide, as in
    timm.

    Raises:
        ValueError: its pixels are numbers without a known white, or it is extremely long.
    """
    if max(image.size) > SLIM * min(image.size):
        raise ValueError(f"it has {image.width} x {image.height} pixels, a side may be {SLIM} times the other")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits (mode {image.mode}), of which none is known to be white")
    image.info.pop("transparency", None)  # of a palette, about which PIL would warn
    return image.convert(mode)
