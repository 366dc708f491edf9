"""Folders of images as users have them: what is read is what another reading of the same files finds, or the reason is told."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from vit2snn.data import choose, open_images
from vit2snn.errors import DataError

EXAMPLES = 150
LAYOUTS = (("",), ("", "train"), ("train", "val"), ("train", "test"), ("Train", "Test"), ("train",), ("all/train", "all/valid"))
CLASSES = ("a", "A", "b 9", "b 10", "test", "7", "çé", "x²")
IMAGES = (
    "0.png", "1.JPG", "2.bmp", "3.webp", "4.tif", "5.gif", "gray.png", "gray.tiff", "cmyk.jpg", "palette.png", "one.png",
    "Ünï.jpeg",
)  # fmt: skip
DAMAGED = ("empty.png", "text.jpg", "cut.png", "link.png", "slim.png", "float.tif")
LITTER = (
    "readme.md", "Thumbs.db", ".DS_Store", "._0.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/0.png", "@eaDir/1.JPG",
    "notes/readme.md",
)  # fmt: skip
NESTED = "deeper/0.png"
ALIKE = {"train": ("train",), "validation": ("val", "valid", "test"), "tset": ()}


@dataclass(frozen=True)
class Case:
    """Files of a folder, by their paths, and how it is opened."""

    files: tuple[str, ...]
    layout: tuple[str, ...]
    split: str
    more_classes: int
    packed: bool


def few(names: Iterable[str], least: int = 0, most: int = 3) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(sorted(names)), unique=True, min_size=least, max_size=most)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    layout = draw(st.sampled_from(LAYOUTS))
    bad = draw(st.sampled_from([(), (), DAMAGED, (NESTED,)]))
    files: list[str] = []
    for part in layout:
        files += [f"{part}/{name}" for name in draw(few(LITTER))]
        for folder in draw(few(CLASSES, least=1, most=4)):
            names = draw(few(IMAGES, least=1)) + draw(few(LITTER)) + (draw(few(bad)) if bad else [])
            files += [f"{part}/{folder}/{name}" for name in names]
    return Case(
        tuple(path.lstrip("/") for path in files), layout, draw(st.sampled_from([*ALIKE, "validation"])),
        draw(st.sampled_from([0, 0, 0, 1])), draw(st.booleans()),
    )  # fmt: skip


def write(path: Path, number: int) -> None:
    """A file as its name says; an image is known by its brightness, which lossy formats change by less than half a step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, gray = path.stem, 3 * number
    image = Image.new("RGB", (8, 8), (gray,) * 3)
    if kind == "empty" or path.suffix in (".md", ".db", ""):
        path.touch()
    elif kind == "text":
        path.write_text("no image")
    elif kind == "link":
        path.symlink_to("/nowhere/0.png")
    elif kind == "slim":
        Image.new("L", (3000, 1)).save(path)
    elif kind == "cut":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "float":
        Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(path)
    elif kind == "gray":
        Image.fromarray(np.full((8, 8), gray * 257, dtype=np.uint16)).save(path)
    else:
        changed = {"cmyk": lambda: image.convert("CMYK"), "palette": image.quantize, "one": lambda: image.resize((1, 1))}
        changed.get(kind, image.copy)().save(path)


def expected(case: Case) -> tuple[dict[int, int] | None, int, bool]:
    """The label of each whole image by its number, None without the split; the number of classes; whether all is in order."""
    wanted = [part for name in ALIKE[case.split] for part in case.layout if part.lower().rpartition("/")[2] == name]
    if case.layout == ("",) and case.split in ("train", "validation"):
        wanted = [""]
    there, wanted = bool(wanted), wanted or [case.layout[-1]]
    classes: dict[str, list[tuple[int, str]]] = {}
    for number, path in enumerate(case.files):
        inside = path.removeprefix(wanted[0]).lstrip("/").split("/") if path.startswith(wanted[0]) else []
        if len(inside) == 2 and inside[0] in CLASSES and inside[1] in IMAGES + DAMAGED:
            classes.setdefault(inside[0], []).append((number, inside[1]))
    key = lambda name: ([int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())], name)  # noqa: E731
    order = {name: label for label, name in enumerate(sorted(classes, key=key))}
    labels = {number: order[name] for name, found in classes.items() for number, file in found if file in IMAGES}
    around = case.layout[0].startswith("all/") and any(path.startswith(("/notes", "notes")) for path in case.files)
    plain = not any(path.endswith(NESTED) for path in case.files) and set(classes) != {"test"} and not around
    return labels if there else None, len(classes), plain and there and not case.more_classes


@pytest.mark.slow
def test_folders_are_read_right_or_refused(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    @settings(
        max_examples=int(request.config.getoption("--fuzz-examples", default=None) or EXAMPLES), deadline=None, database=None,
        derandomize=True, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases())
    def read(case: Case) -> None:
        root = tmp_path / "data"
        shutil.rmtree(root, ignore_errors=True)
        for number, path in enumerate(case.files):
            write(root / path, number)
        if case.packed:
            with tarfile.open(tmp_path / "data.tar", "w") as archive:
                archive.add(root, "data")
        labels, count, plain = expected(case)
        place, classes = tmp_path / "data.tar" if case.packed else root, count + case.more_classes
        bad: set[str] = set()
        try:
            source = open_images(place, case.split, classes=classes, skipped=lambda error: bad.add(str(error)))
        except DataError as error:
            assert not plain, f"refused: {error}"
            return
        found = dict(choose(source, lambda image, label: (round(image.getcolors()[0][1][0] / 3), label), None, 0))
        assert found == labels
        assert len(found) + len(bad) == len(source.labels or [])

    read()
