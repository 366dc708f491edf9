"""Plans on disk: the front of energy and error, its picture, and a recipe file for each plan."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..convert import Compromise, Recipe
from ..convert.plans import uniform
from ..convert.structures import FIELDS
from ..convert.trials import Candidate
from ..errors import ArtifactError
from ..files import whole_folder
from ..reading import read_json
from .versions import versions

KIND = "vit2snn plans"
FRONT, PICTURE = "front.json", "front.svg"


def picture(front: Sequence[Compromise], others: dict[str, Compromise], title: str) -> str:
    """Energy and error of the front's plans, numbered, and of others, by name; SVG."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.energy for p in front], [p.error for p in front], "o-", color="C0", label="front")
    for number, plan in enumerate(front):
        axes.annotate(str(number), (plan.energy, plan.error), xytext=(-4, -11), textcoords="offset points", fontsize=8)
    if others:
        axes.scatter([p.energy for p in others.values()], [p.error for p in others.values()], color="0.6", label="one kind")
    for name, plan in others.items():
        axes.annotate(name, (plan.energy, plan.error), xytext=(5, 3), textcoords="offset points", fontsize=8, color="0.4")
    axes.set(xlabel="energy of the branches / the ANN's", ylabel="error of a branch, mean", title=title)
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    axes.legend()
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    return drawing.getvalue()


def recipe_file(number: int) -> str:
    """The name of the file that has the recipe of a plan."""
    return f"plan-{number}.json"


def is_front(folder: Path) -> bool:
    """Whether `write_front` wrote that folder."""
    try:
        return read_json(folder / FRONT, dict).get("kind") == KIND
    except ArtifactError:
        return False


def write_front(
    out: Path, model: str, recipe: Recipe, found: Sequence[Candidate], front: Sequence[Compromise]
) -> dict[str, Any]:
    """Write a folder: the front and its candidates as JSON, its picture, and a recipe file for each plan.

    Returns:
        What the JSON has.

    Raises:
        ArtifactError: it cannot be written; what was there before is still there.
    """
    others = uniform(recipe, found)
    document = {
        "kind": KIND,
        "model": model,
        "plans": [_entry(plan) | {"file": recipe_file(number)} for number, plan in enumerate(front)],
        "uniform": {name: _entry(plan) for name, plan in others.items()},
        "recipe": recipe.to_json(),
        "candidates": [dataclasses.asdict(candidate) for candidate in found],
        "versions": versions(),
    }
    with whole_folder(out) as folder:
        (folder / FRONT).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (folder / PICTURE).write_text(picture(front, others, model), encoding="utf-8")
        for number, plan in enumerate(front):
            (folder / recipe_file(number)).write_text(json.dumps(plan.recipe.to_json(), indent=2) + "\n", encoding="utf-8")
    return document


def _entry(plan: Compromise) -> dict[str, Any]:
    structure = plan.recipe.to_json()["structure"]
    return {"error": plan.error, "energy": plan.energy} | {field: structure[field] for field in FIELDS}
