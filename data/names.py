"""Names of classes: their order, and the files in which users list classes, or the class of each image."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .pictures import is_image

_HEADINGS = frozenset(["class", "classes", "class_name", "id", "index", "label", "labels", "name", "names", "synset", "wnid"])
_LINES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<index>\d{1,9})\s*[\s,;:]\s*(?P<name>\S.*)",
        r"(?P<name>.*\S)\s*[\s,;:]\s*(?P<index>\d{1,9})",
        r"(?P<name>.+?)[,;]*",
        r"(?P<name>[^\s,;]+)[\s,;].*",
    )
)
"""What a line of a class map may be: index and name, name and index, a name, a name and what it means."""


def natural(name: str) -> tuple[list[Any], str]:
    """The key by which timm sorts: letters whatever their case, numbers by size; and by the name where that leaves it open."""
    parts = re.split(r"(\d{1,1000})", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def some(names: Collection[str]) -> str:
    """The first of some names, for messages."""
    shown = sorted(names, key=natural)[:4]
    return ", ".join([*map(repr, shown), *(["..."] if len(names) > len(shown) else [])])


def class_order(names: Collection[str], classes: int, data: str, what: str = "class folders") -> dict[str, int]:
    """The classes of a model by name, where only the data says which there are: in the order in which timm sorts them.

    Of a model without classes (0) there are as many as the data has.

    Raises:
        DataError: there are more names than classes, or fewer.
    """
    if classes and len(names) != classes:
        raise DataError(
            f"{data!r} has {len(names)} {what}, the model tells {classes} classes apart: {some(names)}",
            "name the model's classes in order with --class-map FILE, one a line",
        )
    return {name: label for label, name in enumerate(sorted(names, key=natural))}


def read_class_map(path: str | Path, classes: int, known: Collection[str]) -> dict[str, int]:
    """The classes of a model by name, from a text file of a line for each.

    A line is a name, in the model's order; or an index from 0 on and a name, or a name and an index; or a name and what it
    means (``n01440764 tench``). Which it is, the names that the data has tell. Empty lines do not count, nor does a heading.

    Args:
        path: the file, in UTF-8.
        classes: how many classes the model tells apart; 0 for as many as there are lines.
        known: names that the data has, such as of class folders.

    Raises:
        DataError: it cannot be read, does not name each class once, or has no line for one of ``known``.
    """
    file = f"the class map {str(path)!r}"
    lines = [line.strip() for line in _text(path, file).split("\n") if line.strip()]
    if lines and lines[0] not in known and set(re.findall(r"\w+", lines[0].lower())) <= _HEADINGS:
        lines = lines[1:]
    if classes and len(lines) != classes:
        raise DataError(
            f"{file} names {len(lines)} classes, the model tells {classes} apart",
            "it needs one line for each class of the model, in the model's order",
        )
    read = [names for pattern in _LINES if (names := _names(lines, pattern)) and set(known) <= set(names)]
    if known and any(names != read[0] for names in read):
        raise DataError(f"{file} can be read with the index first or last", "leave only the names, in the model's order")
    if read:
        return {name: label for label, name in enumerate(read[0])}
    name, times = Counter(lines).most_common(1)[0]
    if times > 1:
        raise DataError(f"{file} names the class {name!r} {times} times", "name each class once")
    strange = sorted(set(known) - set(lines), key=natural)
    raise DataError(
        f"the data has {len(strange)} classes that the class map does not list, such as {strange[0]!r}",
        "check that class map and data set belong together",
    )


def _names(lines: list[str], pattern: re.Pattern[str]) -> list[str] | None:
    """The names of the classes in order, if all lines are of the pattern and each class is named once."""
    found = [pattern.fullmatch(line) for line in lines]
    if not all(found):
        return None
    names = [match["name"].strip("\"' ") for match in found if match]
    if len(set(names)) < len(names):
        return None
    if "index" not in pattern.groupindex:
        return names
    by_index = {int(match["index"]): name for match, name in zip(found, names, strict=True) if match}
    return [by_index[i] for i in range(len(names))] if set(by_index) == set(range(len(names))) else None


def used(labels: Collection[int], classes: int) -> list[str]:
    """A note where labels are of some of a model's classes only; none where they are of all."""
    found = len(set(labels))
    return [f"they are of {found} classes, and the model tells {classes} apart"] if found < classes else []


def labels_as_they_come(
    names: Sequence[str] | None, classes: int, data: str, class_map: str | Path | None
) -> Callable[[Any], int]:
    """What makes labels of what data that is read in order says of each image: a number or a name.

    Args:
        names: of the numbers, where the data tells.
        classes: how many classes the model tells apart.
        data: for messages.
        class_map: see `read_class_map`.

    Raises:
        DataError: names and class map are not of the model's classes; or, of what is returned, a label is none of them.
    """
    order: dict[str, int] | None = None
    if class_map is not None:
        order = read_class_map(class_map, classes, names or ())
    elif names is not None:
        class_order(names, classes, data, "classes")

    def label(value: Any) -> int:
        if value is None or value == -1:
            raise DataError(f"an image of {data!r} has no label", "choose another --split")
        name = str(value).strip() if names is None or isinstance(value, str) else names[value]
        if order is not None and name not in order:
            raise DataError(
                f"{data!r} has the class {name!r}, which the class map does not list", "check that they belong together"
            )
        if order is None and not re.fullmatch(r"\d{1,9}", str(value).strip()):
            raise DataError(
                f"{data!r} names a class {name!r}, and not which of the model's it is",
                "name the model's classes in order with --class-map FILE, one a line",
            )
        return int(value) if order is None else order[name]

    return label


def read_labels(path: str | Path) -> dict[str, str]:
    """The class of each image by its path, from a table of two columns, separated by commas, semicolons or tabs.

    A first row that names no image file is a heading.

    Raises:
        DataError: it cannot be read, is empty, or a row has another number of columns, is incomplete, or repeats a path.
    """
    file = f"the list of labels {str(path)!r}"
    text = _text(path, file)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        table = list(csv.reader(text.split("\n"), delimiter=separator))
    except csv.Error as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(table, 1) if any(map(str.strip, row))]
    if rows and not is_image(rows[0][1][0]):
        rows = rows[1:]
    if not rows:
        raise DataError(f"{file} lists no images", "write a line PATH,CLASS for each image")
    labels: dict[str, str] = {}
    for number, row in rows:
        if len(row) != 2 or not all(row):
            raise DataError(f"line {number} of {file} has the columns {row}", "write PATH,CLASS")
        if row[0] in labels:
            raise DataError(f"line {number} of {file} lists {row[0]!r} again", "list each image once")
        labels[row[0]] = row[1]
    return labels


def _text(path: str | Path, file: str) -> str:
    """The text of a file, without the mark that Windows writes in front."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}", "save it as text in UTF-8") from error
