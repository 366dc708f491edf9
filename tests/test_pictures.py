"""What becomes of the pixels of image files."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit2snn.data.pictures import EXTENSIONS, UnreadableError, decoded, is_image


def pixel(image: Image.Image, kind: str, mode: str = "RGB", **options: Any) -> Any:
    """The first pixel of an image once it has been saved and read again."""
    file = BytesIO()
    image.save(file, kind, **options)
    return decoded(lambda: BytesIO(file.getvalue()), mode, "it").getpixel((0, 0))


def test_what_is_called_an_image_is_one_that_pillow_opens() -> None:
    Image.init()
    kinds = Image.registered_extensions()
    told = {".heic", ".heif", ".jxl"}  # pictures that are told and not passed over
    assert told < EXTENSIONS
    read = EXTENSIONS - told - {".mpo"}  # which Pillow opens as a JPEG, and only then tells its kind
    assert all(kinds[extension] in Image.OPEN for extension in read)
    assert pixel(Image.new("RGB", (4, 4), (9, 9, 9)), "MPO") == (9, 9, 9)
    assert is_image("a/B.JPEG") and is_image("b.webp") and is_image("c.tif")
    assert not is_image("readme.md") and not is_image("png") and not is_image(".png")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_of_gray_in_16_bits_the_upper_8_are_kept(kind: str) -> None:
    gray = Image.fromarray(np.full((4, 4), 0x7F33, dtype=np.uint16))
    assert pixel(gray, kind) == (0x7F,) * 3
    assert pixel(gray, kind, "L") == 0x7F


@pytest.mark.filterwarnings("error")
def test_other_modes_are_converted_as_pillow_does_it() -> None:
    assert pixel(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF") == (255, 0, 0)
    assert pixel(Image.new("1", (4, 4), 1), "PNG") == (255, 255, 255)
    assert pixel(Image.new("RGBA", (4, 4), (9, 8, 7, 0)), "PNG") == (9, 8, 7)  # the colour that is hidden
    assert pixel(Image.new("LA", (4, 4), (9, 0)), "PNG") == (9, 9, 9)
    palette = Image.new("P", (4, 4))
    palette.putpalette([1, 2, 3] * 8)
    assert pixel(palette, "PNG", transparency=b"\x00\x10\xff") == (1, 2, 3)


def test_the_rotation_that_a_camera_notes_is_not_applied() -> None:
    image, exif, file = Image.new("L", (8, 4)), Image.Exif(), BytesIO()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    assert decoded(lambda: BytesIO(file.getvalue()), "L", "it").size == (8, 4)


def test_of_a_file_of_several_images_the_first_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    assert pixel(frames[0], "GIF", save_all=True, append_images=frames[1:]) == (255, 0, 0)
    assert pixel(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG") == (1, 2, 3)


def test_images_without_a_known_white_are_refused() -> None:
    for kind in (np.int32, np.float32):
        with pytest.raises(UnreadableError, match=r"it is not an image .* numbers of 32 bits"):
            pixel(Image.fromarray(np.full((4, 4), 0.5, dtype=kind)), "TIFF")


def test_images_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableError, match="2001 x 1 pixels"):
        pixel(Image.new("L", (2001, 1)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match="exceeds limit of 200 pixels"):
        pixel(Image.new("1", (40, 40)), "PNG")


def damaged(path: Path) -> dict[str, Callable[[], Any]]:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    whole = file.getvalue()
    return {
        "empty": lambda: BytesIO(),
        "text": lambda: BytesIO(b"no image"),
        "cut off": lambda: BytesIO(whole[: len(whole) // 2]),
        "changed": lambda: BytesIO(whole[:16] + b"\xff" * 8 + whole[24:]),
        "missing": (path / "nowhere.png").open,
        "a folder": path.open,
    }


@pytest.mark.parametrize("what", damaged(Path()))
def test_damaged_files_are_told_by_name(what: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"'a/0\.png' is not an image that can be read") as caught:
        decoded(damaged(tmp_path)[what], "RGB", "'a/0.png'")
    assert "--skip-bad" in caught.value.hint
