"""Candidates that have been measured so far, in the folder of an unfinished run, from which it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from ..finetune.checkpoint import CANDIDATES, check_identity, replacing
from ..reading import Amount, Text, read_json
from .trials import Candidate

MOST = 2**14  # of a file: a few hundred are usual


class Row(TypedDict):
    """A `Candidate`."""

    block: Annotated[int, Meta(ge=0, lt=2**10)]
    field: Literal["attention", "mlp"]
    kind: Text
    error: Amount
    energy: Amount
    ann_energy: Amount


class Measured(TypedDict):
    """The file."""

    identity: dict[str, Any]
    candidates: Annotated[list[Row], Meta(max_length=MOST)]


def write_measured(folder: Path, identity: Mapping[str, Any], found: Sequence[Candidate]) -> None:
    """Replace the candidates in a folder. Whatever happens meanwhile, the old ones or the new ones are there, all of them.

    Raises:
        ArtifactError: they cannot be written; the earlier ones are still there.
    """
    document = {"identity": identity, "candidates": [asdict(candidate) for candidate in found]}
    with replacing(folder, CANDIDATES) as file:
        file.write(json.dumps(document).encode())


def read_measured(folder: Path, identity: Mapping[str, Any]) -> list[Candidate]:
    """The candidates in a folder; none if none has been written yet.

    Raises:
        ArtifactError: the file is damaged, or of a run that was begun with another ``identity``; the message tells.
    """
    path = folder / CANDIDATES
    if not path.exists():
        return []
    document = read_json(path, Measured, "start anew with --overwrite")
    check_identity(folder, document["identity"], identity)
    return [Candidate(**row) for row in document["candidates"]]
