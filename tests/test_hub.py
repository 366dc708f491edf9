"""Data sets of Hugging Face, by a stand-in: their package is not among those that the tests need."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from PIL import Image as Pictures

from vit2snn.data import choose, open_images
from vit2snn.errors import DataError


class Image:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    def __init__(self, *names: str) -> None:
        self.names = list(names)


class Value:
    def __init__(self, dtype: str = "int64") -> None:
        self.dtype = dtype


class Table:
    def __init__(self, features: dict[str, Any], **columns: list[Any]) -> None:
        self.features, self.columns = features, columns

    def __getitem__(self, key: Any) -> Any:
        return self.columns[key] if isinstance(key, str) else {name: column[key] for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(next(iter(self.columns.values())))))

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
        def load_dataset(name: str, split: str, cache_dir: str | None, streaming: bool) -> Table:
            assert name == "some/set" and streaming == (prefix == "hfids")
            if split not in (*splits, "train[:1]"):
                raise ValueError(f'Unknown split "{split}".')
            return table

        prefix, splits = options.pop("prefix", "hfds"), options.pop("splits", ["train"])
        datasets.load_dataset = load_dataset
        datasets.get_dataset_split_names = lambda name, cache_dir: splits
        return open_images(f"{prefix}/some/set", options.pop("split", "train"), classes=classes, **options)

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
        ("image", "cls", {"__key__": Value("string")}),
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
        ({"image": Value("string"), "label": ABC}, r"certain to be the images: image \(string\), label \(ClassLabel\)"),
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
    with pytest.raises(DataError, match=r"cannot be opened: Unknown split .nonsense"):
        opened(Table(named), 3, split="nonsense")


def test_files_that_nobody_has_called_images_are_images_by_name(opened: Any) -> None:
    for feature in (Value("binary"), {"bytes": Value("binary"), "path": Value("string")}):
        source = opened(Table({"image": feature, "label": ABC}, image=PICTURES, label=[2, 0, 1]), 3)
        assert source.read(1)[0].getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("prefix", ["hfds", "hfids"])
def test_splits_are_found_as_those_of_folders(prefix: str, opened: Any) -> None:
    table = Table({"image": Image(), "label": ABC}, image=PICTURES, label=[2, 0, 1])
    for splits, split, found in (
        (["train", "test"], "validation", "test"), (["train", "valid", "test"], "validation", "valid"),
        (["train"], "train[:1]", "train[:1]"), (["Train"], "training", "Train"),
    ):  # fmt: skip
        source = opened(table, 3, prefix=prefix, splits=splits, split=split)
        assert source.split == found and f"the split {found!r} of {prefix}/some/set" in source.notes[0]
    with pytest.raises(DataError, match=f"'{prefix}/some/set' has no split 'test', but 'train', 'val'") as caught:
        opened(table, 3, prefix=prefix, splits=["train", "val"], split="test")
    assert "--split" in caught.value.hint


def test_a_stream_is_read_in_order_and_passes_over_images(opened: Any, tmp_path: Any) -> None:
    table = Table({"image": Image(), "label": ABC}, image=[PICTURES[2], *PICTURES[:2]], label=[2, 0, 1])
    told: list[str] = []
    source = opened(table, 3, prefix="hfids", skipped=lambda error: told.append(str(error)))
    assert source.labels is None
    for workers in (0, 2):
        assert list(choose(source, lambda image, label: (image.getpixel((0, 0))[0], label), None, 0, workers=workers)) == [
            (0, 0),
            (1, 1),
        ]
    assert len(told) == 2 and "image 0 of 'hfids/some/set' is not an image that can be read" in told[0]
    with pytest.raises(DataError, match=r"image 0 of .* is not an image"):
        list(choose(opened(table, 3, prefix="hfids"), lambda image, label: label, None, 0))
    (tmp_path / "map.txt").write_text("a\nb\nc\nd\n")
    assert [label for _, label in opened(table, 4, prefix="hfids", class_map=tmp_path / "map.txt").stream()] == [1, 2, 0]
    with pytest.raises(DataError, match="has 3 classes, the model tells 4 classes apart"):
        opened(table, 4, prefix="hfids")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "an image of 'hfids/some/set' has no label"),
        (3, "an image of 'hfids/some/set' has label 3, the model tells 3 classes apart"),
        ("ox", "names a class 'ox', and not which of the model's it is"),
    ],
)
def test_labels_of_a_stream_are_told_where_they_come(label: Any, message: str, opened: Any) -> None:
    table = Table({"image": Image(), "label": Value()}, image=PICTURES, label=[0, label, 0])
    stream = opened(table, 3, prefix="hfids").stream()
    assert next(stream)[1] == 0
    with pytest.raises(DataError, match=message):
        next(stream)


def test_a_stream_that_breaks_off_is_told(opened: Any) -> None:
    class Broken(Table):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            yield self[0]
            raise ConnectionError("gone")

        def select_columns(self, names: list[str]) -> Table:
            return self

    stream = opened(Broken({"image": Image(), "label": ABC}, image=PICTURES, label=[0, 1, 2]), 3, prefix="hfids").stream()
    next(stream)
    with pytest.raises(DataError, match="'hfids/some/set' cannot be read after 1 images: gone"):
        next(stream)
