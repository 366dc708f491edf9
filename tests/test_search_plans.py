"""The search for plans of a conversion: the front of energy and error, and the command."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from click.testing import CliRunner, Result
from conftest import make_recipe

from vit2snn.cli import cli
from vit2snn.convert import Recipe, trials
from vit2snn.convert.auto import KINDS, opened
from vit2snn.convert.plans import compromises, told, uniform
from vit2snn.convert.trials import Candidate
from vit2snn.errors import RecipeError
from vit2snn.search.front import is_on_front
from vit2snn.storage import load, save_model

BLOCKS = range(3)
SMALL = ("--timesteps", 2, "--samples", 24, "--plans", 4)
ATTENTION, MLP = ("ssa", "qk-token", "sdsa"), ("relu", "emsp")
BOTH = make_recipe(attention="auto", mlp="auto", norm="static", readout="mean")


def candidates(seed: int) -> list[Candidate]:
    generator = np.random.default_rng(seed)
    kinds = [("attention", kind) for kind in ATTENTION] + [("mlp", kind) for kind in MLP]
    return [
        Candidate(block, field, kind, error=generator.uniform(), energy=generator.uniform(1e6, 1e8), ann_energy=1e8)
        for block in BLOCKS
        for field, kind in kinds
    ]


def all_plans(found: list[Candidate]) -> list[tuple[float, float]]:
    """Energy and error of every plan in which some block mixes tokens."""
    places = [[c for c in found if (c.block, c.field) == place] for place in itertools.product(BLOCKS, ("attention", "mlp"))]
    return [
        (sum(c.energy for c in plan) / 6e8, sum(c.error for c in plan) / 6)
        for plan in itertools.product(*places)
        if any(c.field == "attention" and c.kind != "qk-token" for c in plan)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_plans_are_on_the_front_of_all_plans_and_reach_its_ends(seed: int) -> None:
    found = candidates(seed)
    everything = all_plans(found)
    points = np.array(everything)
    front = sorted(point for point, on in zip(everything, is_on_front(points), strict=True) if on)
    plans = compromises(BOTH, found, 8)
    assert 3 <= len(plans) <= 8
    for plan in plans:
        assert min(abs(np.array(front) - (plan.energy, plan.error)).max(1)) < 1e-9
    for plan, end in ((plans[0], front[0]), (plans[-1], front[-1])):
        assert (plan.energy, plan.error) == pytest.approx(end)
    assert [plan.energy for plan in plans] == sorted({plan.energy for plan in plans})


def test_more_budgets_find_more_of_the_front() -> None:
    found = candidates(1)
    few, many = compromises(BOTH, found, 3), compromises(BOTH, found, 60)
    assert len(many) > len(few)
    assert (many[0], many[-1]) == (few[0], few[-1])


def test_uniform_plans_are_no_better_than_the_front() -> None:
    found = candidates(3)
    full = [*found, *(dataclasses.replace(c, kind=kind) for c in found if c.kind == "sdsa" for kind in ("emsa", "qk-channel"))]
    others = uniform(BOTH, full)
    assert set(others) == {f"{a} and {m}" for a in ("ssa", "qk-channel", "sdsa", "emsa") for m in MLP}
    best = compromises(BOTH, full, 2)[-1]
    assert all(plan.error >= best.error for plan in others.values())
    assert others["ssa and emsp"].recipe.structure.attention == {"0": "ssa", "1": "ssa", "2": "ssa"}


def test_plans_are_told_in_words() -> None:
    assert told({"0": "ssa", "1": "ssa", "2": "sdsa", "3": "ssa"}) == "ssa 0-1 sdsa 2 ssa 3"


def test_a_recipe_is_opened_where_it_has_new_branches() -> None:
    both = opened(Recipe.find("qkformer-membrane"))
    assert (both.structure.attention, both.structure.mlp, both.structure.norm) == ("auto", "auto", "static")
    assert both.spikes == Recipe.find("qkformer-membrane").spikes
    assert opened(both.changed(mlp="relu", max_energy=0.5)).structure.mlp == "relu"
    with pytest.raises(RecipeError, match="no new branches"):
        opened(Recipe())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("planned")
    recipe = folder / "recipe.json"
    opened = make_recipe(attention="auto", norm="static", neuron="if", readout="mean", refit="none")
    recipe.write_text(json.dumps(opened.to_json()))
    given = ("--recipe", recipe, *SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vit2snn.convert.trials.STEPS", 2)
        result = run("plan", "demo", *given, "-o", folder / "plans", "--json")
    assert result.exit_code == 0, result.output
    return folder / "plans", json.loads(result.stdout)


def test_the_command_writes_plans_a_picture_and_recipes(planned: tuple[Path, dict[str, Any]]) -> None:
    out, document = planned
    assert json.loads((out / "front.json").read_text()) == document
    assert len(document["candidates"]) == 4 * len(KINDS["attention"])
    plans = document["plans"]
    assert len(plans) >= 2
    assert {path.name for path in out.iterdir()} == {"front.json", "front.svg", *(plan["file"] for plan in plans)}
    energies, errors = [[plan[figure] for plan in plans] for figure in ("energy", "error")]
    assert energies == sorted(energies)
    assert errors == sorted(errors, reverse=True)
    assert 0 < energies[0] < 1
    drawing = (out / "front.svg").read_text()
    assert drawing.count("<svg") == 1
    for plan in plans:
        recipe = Recipe.find(out / plan["file"])
        assert (recipe.structure.attention, recipe.structure.mlp, recipe.timesteps) == (plan["attention"], "mlp", 2)


@pytest.mark.slow
def test_an_interrupted_search_is_resumed_with_the_same_plans(
    planned: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, document = planned
    out, kept = tmp_path / "plans", tmp_path / "plans.training" / "candidates.json"
    given = ("demo", "--recipe", whole.parent / "recipe.json", *SMALL, "-o", out)
    monkeypatch.setattr("vit2snn.convert.trials.STEPS", 2)
    fit_place, numbers = trials.fit_place, iter(range(6))

    def killed(*arguments: Any) -> None:
        if next(numbers, None) is None:
            raise KeyboardInterrupt
        fit_place(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trials, "fit_place", killed)
        assert run("plan", *given).exit_code == 130
    assert json.loads(kept.read_text())["candidates"] == document["candidates"][:6] and not out.exists()
    again = run("plan", *given)
    assert (again.exit_code, "holds an unfinished training" in again.stderr) == (2, True)
    other = run("plan", *given, "--resume", "--timesteps", 3)
    assert (other.exit_code, "was begun with recipe" in other.stderr) == (1, True)
    resumed = run("plan", *given, "--resume", "--json")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout) == document
    assert [path.name for path in tmp_path.iterdir()] == ["plans"]
    nothing = run("plan", *given, "--resume", "--overwrite")
    assert (nothing.exit_code, "there is no unfinished training" in nothing.stderr) == (1, True)


def test_a_plan_converts(planned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, document = planned
    result = run("convert", "demo", "--recipe", out / "plan-1.json", "--samples", 8, "-o", tmp_path / "snn")
    assert result.exit_code == 0, result.output
    chosen = {str(block): plan.attention for block, plan in enumerate(load(tmp_path / "snn").plan.blocks)}
    assert chosen == document["plans"][1]["attention"]


def test_plans_replace_plans_only(planned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = planned
    again = run("plan", "demo", "-o", out)
    assert (again.exit_code, "pass --overwrite" in again.stderr) == (2, True)
    (tmp_path / "front.json").write_text("[]")
    other = run("plan", "demo", "-o", tmp_path, "--overwrite")
    assert other.exit_code == 1
    assert "not a folder that vit2snn wrote" in other.stderr
    assert (tmp_path / "front.json").read_text() == "[]"


def test_bad_input(tmp_path: Path) -> None:
    spikeless = run("plan", "demo", "--recipe", "faithful", "-o", tmp_path / "plans")
    assert spikeless.exit_code == 2
    assert "take one such as qkformer" in spikeless.stderr
    save_model(timm.create_model("efficientformerv2_s0"), tmp_path / "other")
    other = run("plan", f"local-dir:{tmp_path / 'other'}", "--data", tmp_path, "-o", tmp_path / "plans")
    assert other.exit_code == 1
    assert "whole branches are exchanged in timm's VisionTransformer" in other.stderr
    assert not (tmp_path / "plans").exists()
