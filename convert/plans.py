"""The plans to choose from: which new branches a given ViT should have in which blocks, for every budget of energy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .auto import choose, figures
from .blocks import is_new, mixes_tokens
from .recipe import Recipe
from .trials import Candidate

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
        chosen = choose(recipe.changed(**budget), found)
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
    fields = recipe.structure.undecided
    blocks = [str(block) for block in sorted({candidate.block for candidate in found})]
    plans = {}
    measured = ([*dict.fromkeys(c.kind for c in found if c.field == field)] for field in fields)
    for kinds in itertools.product(*measured):
        if (fields[0] != "attention" or mixes_tokens(kinds[0])) and any(map(is_new, kinds)):
            same = {field: dict.fromkeys(blocks, kind) for field, kind in zip(fields, kinds, strict=True)}
            chosen = recipe.changed(**same)
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
