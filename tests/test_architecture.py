"""docs/architecture.md says what is there."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import vit2snn.spiking.branches as branches
from vit2snn.calibration import OBSERVERS
from vit2snn.measure import MODELS
from vit2snn.spiking import NEURONS, Coding
from vit2snn.spiking.branches import kinds

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def layers() -> list[set[str]]:
    """Those of the import contract, from the top."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    rows = config["importlinter:contract:layers"]["layers"].split("\n")
    return [{name.strip().removeprefix("vit2snn.") for name in row.split("|")} for row in rows if row.strip()]


def test_the_drawing_has_the_rooms_in_the_order_of_the_contract() -> None:
    drawing = PAGE.split("```")[1]
    drawn = re.findall(r"^ ([a-z]+)\b", drawing, flags=re.M)
    expected = layers()
    for layer in expected:
        assert layer == set(drawn[: len(layer)])
        drawn = drawn[len(layer) :]
    assert not drawn
    rooms = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert rooms | {"cli", "files", "reading", "errors"} == set().union(*expected)


def test_files_and_names_of_the_page_are_there() -> None:
    paths = set(re.findall(r"`([\w/]+(?:\.\w+|/))`", PAGE))
    assert len(paths) > 25
    for path in paths:
        assert (ROOT / path).exists(), path
    assert Coding and NEURONS and OBSERVERS and MODELS


def test_every_kind_of_branch_is_a_file() -> None:
    shared = {"__init__", "attention", "base", "count", "registry"}
    files = {path.stem for path in (ROOT / "spiking" / "branches").glob("*.py")} - shared
    known = [branches.find(place, kind) for place in ("attention", "mlp") for kind in kinds(place)]
    assert {kind.__module__.rpartition(".")[2] for kind in known} == files
    assert len(files) == len(known)
