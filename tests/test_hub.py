"""Data sets of Hugging Face, by a stand-in: their package is not among those that the tests need."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest
from PIL import Image as Pictures

from vit2snn.data import open_images
from vit2snn.errors import DataError


class Image:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    def __init__(self, *names: str) -> None:
        self.names = list(names)


class Value:
    pass


class Table:
    def __init__(self, features: dict[str, Any], **columns: list[Any]) -> None:
        self.features, self.columns = features, columns

    def __getitem__(self, key: Any) -> Any:
        return self.columns[key] if isinstance(key, str) else {name: column[key] for name, column in self.columns.items()}

    def select_columns(self, names: list[str]) -> Table:
        return Table(self.features, **{name: self.columns[name] for name in names})

    def cast_column(self, name: str, feature: Image) -> Table:
        assert not feature.decode
        return self


def picture(gray: int) -> dict[str, Any]:
    file = io.BytesIO()
    Pictures.new("L", (4, 4), gray).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


PICTURES = [picture(0), picture(1), {"bytes": b"no image", "path": None}]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a table as a data set of the hub."""
    datasets: Any = ModuleType("datasets")
    datasets.Image = Image
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setattr("vit2snn.data.opening.find_spec", lambda name: datasets)

    def opening(table: Table, classes: int, **options: Any) -> Any:
        def load_dataset(name: str, split: str, cache_dir: str | None) -> Table:
            if split != "train":
                raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")
            return table

        datasets.load_dataset = load_dataset
        return open_images("hfds/some/set", options.pop("split", "train"), classes=classes, **options)

    return opening


ABC = ClassLabel("c", "a", "b")


@pytest.mark.parametrize(
    ("image", "label", "more"),
    [
        ("image", "label", {}),
        ("img", "labels", {}),
        ("pixel_values", "fine_label", {"coarse_label": ClassLabel("x", "y")}),
        ("whatever", "kind", {"note": Value()}),
        ("image", "label", {"mask": Image()}),
    ],
)
def test_columns_are_found_by_type_and_name(image: str, label: str, more: dict[str, Any], opened: Any) -> None:
    table = Table({**more, image: Image(), label: ABC}, **{image: PICTURES, label: [2, 0, 1]})
    source = opened(table, 3)
    assert source.labels == [2, 0, 1]
    assert (source.read(1)[0].getpixel((0, 0)), source.read(1)[1]) == ((1, 1, 1), 0)
    assert repr(image) in source.notes[0] and repr(label) in source.notes[0]
    with pytest.raises(DataError, match="image 2 of 'hfds/some/set' is not an image that can be read"):
        source.read(2)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": Image()}, r"no column that is certain to be the labels: image \(Image\)"),
        ({"image": Image(), "one": ABC, "other": ABC}, "certain to be the labels"),
        ({"left": Image(), "right": Image(), "label": ABC}, "certain to be the images"),
        ({"image": Value(), "label": ABC}, "certain to be the images"),
    ],
)
def test_columns_that_are_not_certain_are_refused(features: dict[str, Any], message: str, opened: Any) -> None:
    with pytest.raises(DataError, match=message):
        opened(Table(features), 3)


def test_labels_are_numbers_or_names_and_all_there(opened: Any, tmp_path: Any) -> None:
    plain, named = {"image": Image(), "label": Value()}, {"image": Image(), "label": ABC}
    assert opened(Table(plain, image=PICTURES, label=[0, 4, 0]), 5).labels == [0, 4, 0]
    assert opened(Table(plain, image=PICTURES, label=["ox", "cat", "ox"]), 2).labels == [1, 0, 1]
    (tmp_path / "map.txt").write_text("a\nb\nc\nd\n")
    assert opened(Table(named, image=PICTURES, label=[0, 1, 0]), 4, class_map=tmp_path / "map.txt").labels == [2, 0, 2]
    with pytest.raises(DataError, match="has 3 classes, the model tells 4 classes apart: 'a', 'b', 'c'"):
        opened(Table(named, image=PICTURES, label=[0, 1, 0]), 4)
    for missing in (None, -1):
        with pytest.raises(DataError, match="1 of 3 images of 'hfds/some/set' have no label"):
            opened(Table(named, image=PICTURES, label=[0, missing, 0]), 3)
    with pytest.raises(DataError, match=r"cannot be opened: Unknown split .validation"):
        opened(Table(named), 3, split="validation")
