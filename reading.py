"""Reading JSON that may be damaged or a stranger's: bounded before memory is taken for it, and checked against a schema.

Schemas are types (typed dictionaries, lists, numbers with bounds) that ``msgspec`` compares a document with.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from .errors import ArtifactError, Vit2SnnError

Document = TypeVar("Document")

LARGEST = 128 * 2**20
"""Bytes of a document: an evaluation of some hundred operations at a thousand timesteps has a third of that."""
MOST = 2**22
"""Values of a document. A value of two bytes takes up to 250 in memory."""

LONGEST = 1024
"""Timesteps of a run: rate coding, which needs the most, has been published with as many."""
WIDEST = 4096
"""Pixels along a side of an image: attention takes memory by the fourth power."""
MOST_BITS = 8
"""Of a weight that is an integer: a byte."""

FLOAT = sys.float_info.max
Number = Annotated[float, Meta(ge=-FLOAT, le=FLOAT)]
"""Finite."""
Amount = Annotated[float, Meta(ge=0, le=FLOAT)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Step = Annotated[int, Meta(ge=1, le=2**31)]
Text = Annotated[str, Meta(max_length=2**16)]


def read_json(path: Path, kind: type[Document], hint: str = "", error: type[Vit2SnnError] = ArtifactError) -> Document:
    """The document in a file, which is of that kind.

    Args:
        path: of the file.
        kind: the schema.
        hint: what to do where it is damaged.
        error: what is raised.

    Returns:
        Of objects, what the schema knows.

    Raises:
        Vit2SnnError: of the kind ``error``: the file cannot be read, is too large, no JSON in UTF-8, says something twice, or
            does not keep to the schema; the message names file and field.
    """
    return checked(parsed(path, hint, error), kind, path, hint, error)


def checked(
    document: object, kind: type[Document], path: Path, hint: str = "", error: type[Vit2SnnError] = ArtifactError
) -> Document:
    """The document that is in a file, if it is of that kind.

    Raises:
        Vit2SnnError: it is not; the message names file and field.
    """
    try:
        return msgspec.convert(document, kind)
    except (msgspec.ValidationError, RecursionError) as damage:
        raise error(f"{str(path)!r} is damaged: {_told(str(damage), document)}", hint) from None


def parsed(path: Path, hint: str = "", error: type[Vit2SnnError] = ArtifactError) -> Any:
    """What the JSON in a file holds, whatever that is.

    Raises:
        Vit2SnnError: the file cannot be read, is too large, no JSON in UTF-8, or says something twice.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise ValueError("it is no regular file")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size} bytes, expected at most {LARGEST}")
        text = path.read_bytes()
        if sum(text.count(mark) for mark in b",[{") > MOST:
            raise ValueError(f"it holds more than {MOST} values")
        document = json.loads(text.decode(), object_pairs_hook=_once)
        if b"\\u" in text:  # of half a character nothing could be written
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except (OSError, ValueError, RecursionError) as damage:
        reason = getattr(damage, "strerror", None) or str(damage).splitlines()[0]
        raise error(f"{str(path)!r} cannot be read: {reason}", hint) from damage


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; JSON leaves open which of several values of a name is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it gives {twice[:60]!r} twice")
    return found


def _told(damage: str, document: Any) -> str:
    """What ``msgspec`` says, with the field in front and, of numbers that are not finite, their value."""
    what, _, where = damage.partition(" - at `")
    field = where.removeprefix("$").removeprefix(".").rstrip("`") or "the document"
    for key in re.findall(r"\[(\d+)\]|([^.\[\]`$]+)", where):
        try:
            document = document[int(key[0]) if key[0] else key[1]]
        except (LookupError, TypeError):
            document = None
    if isinstance(document, float) and not math.isfinite(document):
        return f"{field}: expected a finite number, got {document}"
    missing = re.fullmatch("Object missing required field `(.*)`", what)
    if missing:
        return f"{field} has no {missing[1]!r}"
    return f"{field}: {what[:1].lower()}{what[1:].replace('`', '')}"
