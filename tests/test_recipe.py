from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from vit2snn.convert import RECIPES, Recipe
from vit2snn.errors import RecipeError


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_json_gives_the_recipe_back(recipe: Recipe, tmp_path: Path) -> None:
    changed = dataclasses.replace(recipe, ignore=("head", "blocks.0.*"))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(changed.to_json()))
    assert Recipe.find(path) == changed


def test_recipes_are_frozen_and_have_the_names_of_the_contract() -> None:
    assert {"faithful", "ternary", "binary"} <= set(RECIPES)
    assert Recipe.find("faithful") == Recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().timesteps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timesteps": 0}, "'timesteps' is out of range: 0"),
        ({"timesteps": 2.5}, "'timesteps' must be int, got 2.5"),
        ({"timesteps": True}, "'timesteps' must be int, got True"),
        ({"ratio": 1.0}, "'ratio' is out of range"),
        ({"ratio": float("nan")}, "'ratio' is out of range"),
        ({"coding": "morse"}, "'coding' must be 'differential' or 'rate' or 'decaying', got 'morse'"),
        ({"percentile": 101}, "'percentile' is out of range: 101"),
        ({"headroom": -1}, "'headroom' is out of range"),
        ({"ignore": "head"}, "'ignore' must be a list of strings"),
        ({"timestep": 4}, "unknown recipe field 'timestep'"),
        ({"version": 99}, "version 99, this vit2snn reads version 2"),
        ([1, 2], "a recipe is a JSON object, got list"),
    ],
)
def test_bad_fields_are_named(fields: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(fields)


def test_unknown_names_and_broken_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe and no file 'faithfull'") as error:
        Recipe.find("faithfull")
    assert "faithful" in error.value.hint
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.find(broken)
