"""The search for conversions: which branches of spikes a given ViT should have in which blocks, for every budget of energy."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..convert import Recipe
from ..convert.auto import FIELDS, Candidate, choose, figures
from ..convert.blocks import AUTO, mixes_tokens
from ..storage.files import whole_folder
from ..storage.versions import versions

KIND = "vit2snn plans"
FRONT, PICTURE = "front.json", "front.svg"
SLACK = 1 + 1e-9  # of a bound that a plan found before lies on


@dataclass(frozen=True)
class Compromise:
    """A plan that no other beats in both figures.

    Attributes:
        recipe: converts by it.
        error: what its branches leave undone of the ANN's, relative, each by itself; the mean over branches (see `Candidate`).
        energy: of its branches, over that of the ANN's.
    """

    recipe: Recipe
    error: float
    energy: float


def compromises(recipe: Recipe, found: Sequence[Candidate], count: int) -> list[Compromise]:
    """The Pareto front of energy and error: for each of ``count`` even budgets the plan of least error, each exact.

    Args:
        recipe: with ``auto`` in one field or both, and no budget.
        found: all candidates.
        count: of budgets, from the least energy that there is to that of the least error; at least 2.

    Returns:
        Different plans, from the cheapest to the one of least error; fewer than ``count`` where budgets share one.
    """

    def within(**budget: float) -> Compromise:
        chosen = choose(dataclasses.replace(recipe, **budget), found)  # type: ignore[arg-type]
        return Compromise(chosen, *figures(chosen, found))

    cheapest = within(max_error=sum(candidate.error for candidate in found) + 1)
    budgets = np.linspace(cheapest.energy, within().energy, count)
    front = dict[tuple[float, float], Compromise]()
    for budget in budgets:
        best = within(max_energy=float(budget) * SLACK)
        plan = within(max_error=best.error * SLACK)  # the cheapest of equally good ones
        front.setdefault((plan.energy, plan.error), plan)
    return [front[point] for point in sorted(front)]


def uniform(recipe: Recipe, found: Sequence[Candidate]) -> dict[str, Compromise]:
    """For comparison, the plans that have the same branches in all blocks, by name."""
    fields = [field for field in FIELDS if getattr(recipe, field) == AUTO]
    blocks = [str(block) for block in sorted({candidate.block for candidate in found})]
    plans = {}
    measured = ([*dict.fromkeys(c.kind for c in found if c.field == field)] for field in fields)
    for kinds in itertools.product(*measured):
        if fields[0] != "attention" or mixes_tokens(kinds[0]):
            same: dict[str, Any] = {field: dict.fromkeys(blocks, kind) for field, kind in zip(fields, kinds, strict=True)}
            chosen = dataclasses.replace(recipe, **same)
            plans[" and ".join(kinds)] = Compromise(chosen, *figures(chosen, found))
    return plans


def told(kinds: Mapping[str, str]) -> str:
    """The branches of a plan by block, in words, such as ``ssa 0-3 sdsa 4``."""
    words, start = [], 0
    for kind, blocks in itertools.groupby(kinds[str(block)] for block in range(len(kinds))):
        last = start + len(list(blocks)) - 1
        words.append(f"{kind} {start}-{last}" if last > start else f"{kind} {start}")
        start = last + 1
    return " ".join(words)


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
    axes.set(xlabel="energy of the branches / the ANN's", ylabel="relative error of a branch, mean", title=title)
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
        return bool(json.loads((folder / FRONT).read_text(encoding="utf-8")).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
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
    return {"error": plan.error, "energy": plan.energy} | {field: getattr(plan.recipe, field) for field in FIELDS}
