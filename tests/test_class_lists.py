"""Class maps and lists of labels, as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from timm.utils.misc import natural_key

from vit2snn.data.names import class_order, natural, read_class_map, read_labels
from vit2snn.errors import DataError

CAT_DOG_OX = {"cat": 0, "ox 2": 1, "dog": 2}


@given(st.lists(st.text(st.sampled_from("aB10 ²_"), max_size=6), unique_by=str.lower))
def test_names_are_sorted_as_timm_sorts_them(names: list[str]) -> None:
    names = [name for name in names if "²" not in name]  # at which timm's key fails
    assert sorted(names, key=natural) == sorted(sorted(names), key=natural_key)  # who leaves equal keys as they come
    assert sorted(["²", "a", "A"], key=natural) == ["A", "a", "²"]


def test_the_order_of_classes_is_by_name_and_complete() -> None:
    assert class_order({"b10", "b9", "A"}, 3, "d") == {"A": 0, "b9": 1, "b10": 2}
    with pytest.raises(DataError, match=r"'d' has 2 class folders, the model tells 5 classes apart: 'a', 'b'"):
        class_order(["b", "a"], 5, "d")


@pytest.mark.parametrize(
    "text",
    [
        "cat\nox 2\ndog\n",
        "\ufeffcat\r\nox 2\r\ndog",
        "\n  cat \n\n\tox 2\n\n\ndog\n\n",
        "class\ncat\nox 2\ndog\n",
        "0 cat\n1 ox 2\n2 dog\n",
        "2: dog\n0: cat\n1: ox 2\n",
        "index,name\n0,cat\n1,ox 2\n2,dog\n",
        'name;label\n"dog";2\n"cat";0\n"ox 2";1\n',
        "cat\t0\nox 2\t1\ndog\t2\n",
        "cat,\nox 2,\ndog,\n",
    ],
)
def test_class_maps_are_read_in_the_forms_that_users_write(text: str, tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_bytes(text.encode())
    assert read_class_map(path, 3, ["cat", "ox 2"]) == CAT_DOG_OX


def test_what_a_line_is_the_names_in_the_data_tell(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text("0 cat\n1 dog\n")
    assert read_class_map(path, 2, ["0 cat"]) == {"0 cat": 0, "1 dog": 1}
    path.write_text("n02 tench, Tinca tinca\nn01 ray\n")
    assert read_class_map(path, 2, ["n01"]) == {"n02": 0, "n01": 1}
    path.write_text("class\ncat\n")
    assert read_class_map(path, 2, ["class"]) == {"class": 0, "cat": 1}


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("class\ncat\n", 2, "names 1 classes, the model tells 2 apart"),  # a heading is no class
        ("", 2, "names 0 classes"),
        ("cat\ncat\n", 2, "names the class 'cat' 2 times"),
        ("1 cat\n2 dog\n", 2, "1 classes that the class map does not list, such as 'cat'"),
        ("0 cat\n0 dog\n", 2, "does not list, such as 'cat'"),
        ("0 cat\n2 dog\n", 2, "does not list, such as 'cat'"),
    ],
)
def test_class_maps_that_may_shift_labels_are_refused(text: str, classes: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_class_map(path, classes, ["cat"])


def test_class_maps_that_can_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text("0 1\n1 2\n2 0\n")
    with pytest.raises(DataError, match="can be read with the index first or last"):
        read_class_map(path, 3, ["0", "1", "2"])


def test_files_that_are_no_text_in_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.txt"
    path.write_text("cat\ndog\n", encoding="utf-16")
    for read in (lambda: read_class_map(path, 2, []), lambda: read_labels(path), lambda: read_labels(tmp_path)):
        with pytest.raises(DataError, match="cannot be read") as caught:
            read()
        assert "UTF-8" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "a/0.png,cat\nb.JPG,ox 2\n",
        "\ufeffpath,class\r\na/0.png,cat\r\nb.JPG,ox 2\r\n",
        'image;label\n"a/0.png"; cat\n\nb.JPG;"ox 2"\n',
        "a/0.png\tcat\nb.JPG\tox 2",
    ],
)
def test_lists_of_labels_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode())
    assert read_labels(path) == {"a/0.png": "cat", "b.JPG": "ox 2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("path,class\n", "lists no images"),
        ("a.png,1\nb.png\n", r"line 2 of .* has the columns \['b.png'\]"),
        ("a.png,1\nb.png,\n", "line 2"),
        ("a.png,1,2\n", "line 1"),
        ("a.png,1\n\na.png,2\n", "line 3 of .* lists 'a.png' again"),
    ],
)
def test_lists_of_labels_with_gaps_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(path)
