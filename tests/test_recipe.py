from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_recipe

import vit2snn
from vit2snn.convert import RECIPES, Coded, Membrane, Recipe, Structure
from vit2snn.convert.choices import ByBlock
from vit2snn.errors import RecipeError

MEMBRANE = {"kind": "membrane"}
SPIKING = {"attention": "ssa"}


def example(page: str) -> Any:
    """The recipe file that a page of the documentation shows."""
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    return json.loads(text.partition("```json\n")[2].partition("```")[0])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_json_gives_the_recipe_back(recipe: Recipe, tmp_path: Path) -> None:
    changed = recipe.changed(ignore=("head", "blocks.0.*"))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(changed.to_json()))
    assert Recipe.find(path) == changed


def test_json_is_nested_and_fields_left_out_have_their_defaults() -> None:
    fields = RECIPES["qkformer-membrane"].to_json()
    assert list(fields) == ["version", "timesteps", "structure", "spikes", "max_error", "max_energy", "ignore", "weight_bits"]
    assert fields["version"] == 3
    assert fields["structure"]["attention"] == {"first half": "qk-token+ssa+conv", "second half": "ssa+conv"}
    assert list(fields["spikes"]) == ["kind", "neuron", "kept"]
    assert fields["spikes"]["kind"] == "membrane" and fields["spikes"]["kept"]["levels"] == 16
    assert Recipe.from_json({}) == Recipe() == RECIPES["faithful"]
    assert Recipe.from_json({"spikes": {"levels": 2}}) == Recipe(spikes=Coded(levels=2))
    kept = Recipe.from_json({"structure": SPIKING, "spikes": MEMBRANE | {"kept": {"levels": 2}}}).coded
    assert kept == Coded(levels=2, prior="none", bias=False)


@pytest.mark.parametrize("page", ["docs/recipes.md", "docs/spike_driven.md"])
def test_the_documentation_shows_a_recipe(page: str) -> None:
    assert Recipe.from_json(example(page)).structure.replaces


def test_the_complete_example_has_every_field() -> None:
    def names(fields: object) -> Any:
        return (
            {name: names(value) for name, value in fields.items() if name != "attention"} if isinstance(fields, dict) else None
        )

    assert names(example("docs/recipes.md")) == names(RECIPES["qkformer-membrane"].to_json())


def test_new_branches_are_fitted_unless_it_is_said_how() -> None:
    static = Structure("ssa", norm="static")
    recipes = [Recipe(), Recipe(structure=static), Recipe(structure=static, spikes=Membrane())]
    assert [recipe.structure.refit for recipe in recipes] == [None, "blocks", "blocks"]
    assert Recipe(structure=dataclasses.replace(static, refit="none")).structure.refit == "none"
    assert Recipe(structure=static) == Recipe(structure=dataclasses.replace(static, refit="blocks"))


def test_fields_are_changed_by_their_names_in_whatever_part() -> None:
    changed = RECIPES["qkformer-membrane"].changed(timesteps=2, refit="none", neuron="lif", levels=2)
    assert (changed.timesteps, changed.structure.refit, changed.spikes.neuron, changed.coded.levels) == (2, "none", "lif", 2)
    assert changed.structure.attention == RECIPES["qkformer-membrane"].structure.attention
    assert Recipe().changed(structure=Structure("ssa"), spikes=Membrane(), neuron="plif").spikes.neuron == "plif"
    with pytest.raises(RecipeError, match="recipe field 'neuron' is unknown") as caught:
        Recipe().changed(neuron="if")
    assert caught.value.hint == "it is written as spikes.neuron, with spikes of kind 'membrane'"
    with pytest.raises(RecipeError, match=r"'spikes\.kept\.levels' must be from 0 to 256, got -1"):
        RECIPES["qkformer-membrane"].changed(levels=-1)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda recipe: pickle.loads(pickle.dumps(recipe))])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_recipes_are_values(recipe: Recipe, copied: Callable[[Recipe], Recipe]) -> None:
    again = copied(recipe)
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again.to_json() == recipe.to_json()


def test_nothing_of_a_recipe_can_be_changed() -> None:
    qkformer, given = RECIPES["qkformer-membrane"], {"0": "ssa"}
    attention: Any = qkformer.structure.attention
    with pytest.raises(TypeError):
        attention["first half"] = "ssa"
    for part, name in ((Recipe(), "timesteps"), (Structure(), "norm"), (Coded(), "levels"), (Membrane(), "neuron")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, None)
    for change in (lambda: setattr(attention, "_pairs", ()), lambda: delattr(attention, "_pairs")):
        with pytest.raises(AttributeError, match="cannot be changed"):
            change()
    with pytest.raises(TypeError):
        RECIPES["qkformer-membrane"] = Recipe()  # type: ignore[index]
    mine = make_recipe(attention=given)
    given["0"] = "emsa"
    assert mine.structure.attention == {"0": "ssa"}
    assert qkformer is vit2snn.Recipe.find("qkformer-membrane")


def test_kinds_by_block_are_a_mapping_whose_order_counts() -> None:
    kinds = ByBlock({"*": "ssa", "2": "sdsa"})
    assert (dict(kinds), len(kinds), kinds["2"], kinds.get("3"), "2" in kinds) == (
        {"*": "ssa", "2": "sdsa"},
        2,
        "sdsa",
        None,
        True,
    )
    assert kinds == {"*": "ssa", "2": "sdsa"} and repr(kinds) == "{'*': 'ssa', '2': 'sdsa'}"
    assert kinds != ByBlock({"2": "sdsa", "*": "ssa"}) and kinds != "ssa"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timesteps": 0}, "'timesteps' must be from 1 to 1024, got 0"),
        ({"timesteps": 2.5}, "'timesteps' must be a whole number, got 2.5"),
        ({"timesteps": True}, "'timesteps' must be a whole number, got True"),
        ({"timesteps": None}, "'timesteps' must be a whole number, got null"),
        ({"timesteps": 10**40}, "'timesteps' must be from 1 to 1024, got 10000"),
        ({"spikes": {"ratio": 1.0}}, r"'spikes\.ratio' must be above 1"),
        ({"spikes": {"ratio": float("nan")}}, r"'spikes\.ratio' must be a finite number, got nan"),
        ({"spikes": {"ratio": 10**400}}, r"'spikes\.ratio' must be a finite number"),
        ({"spikes": {"ratio": 1e9}}, r"'spikes\.ratio' must be above 1, and such that the levels span at most 100 octaves"),
        ({"spikes": {"levels": 10**9}}, r"'spikes\.levels' must be from 0 to 256"),
        ({"spikes": {"coding": "morse"}}, r"'spikes\.coding' must be 'differential' or 'rate' or 'decaying', got 'morse'"),
        ({"spikes": {"coding": ["rate"]}}, r"'spikes\.coding' must be 'differential' or .*, got \['rate'\]"),
        ({"spikes": {"percentile": 101}}, r"'spikes\.percentile' must be above 0 and at most 100, got 101"),
        ({"spikes": {"headroom": -1}}, r"'spikes\.headroom' must be above 0"),
        ({"spikes": {"headroom": float("inf")}}, r"'spikes\.headroom' must be a finite number, got inf"),
        ({"spikes": {"signed": 1}}, r"'spikes\.signed' must be true or false, got 1"),
        ({"spikes": {"price": 1e-8, "thresholds": "static"}}, r"'spikes\.price' is 1e-08, and thresholds are static"),
        ({"spikes": []}, r"'spikes' must be a JSON object, got \[\]"),
        ({"spikes": None}, "'spikes' must be a JSON object, got null"),
        ({"spikes": {"kind": "analog"}}, r"'spikes\.kind' must be 'coded' or 'membrane', got 'analog'"),
        ({"spikes": {"kind": {}}}, r"'spikes\.kind' must be 'coded' or 'membrane', got \{\}"),
        ({"structure": 3}, "'structure' must be a JSON object, got 3"),
        ({"structure": {"norm": {"kind": "static"}}}, r"'structure\.norm' must be 'layernorm' or .*, got \{"),
        (
            {"structure": {"mlp": "relu", "norm": "batchnorm"}},
            r"'structure\.norm' must be 'layernorm' or .*'gated', got 'batchnorm'",
        ),
        (
            {"structure": {"refit": "all"}},
            r"'structure\.refit' must be 'none' or .* or 'network' or null, got 'all'",
        ),
        ({"ignore": "head"}, "'ignore' must be a list of strings, got 'head'"),
        ({"ignore": [1]}, "'ignore' must be a list of strings"),
        ({"max_energy": "low"}, "'max_energy' must be a finite number or null, got 'low'"),
        ({"max_error": 0, "structure": {"attention": "auto"}, "spikes": MEMBRANE}, "'max_error' must be above 0, got 0"),
        ({"structure": SPIKING, "spikes": MEMBRANE | {"kept": 3}}, r"'spikes\.kept' must be a JSON object, got 3"),
        (
            {"structure": SPIKING, "spikes": MEMBRANE | {"kept": {"levels": -1}}},
            r"'spikes\.kept\.levels' must be from 0 to 256",
        ),
        ({"structure": SPIKING, "spikes": MEMBRANE | {"neuron": None}}, r"'spikes\.neuron' must be 'lif' or .*, got null"),
        ({"structure": SPIKING, "spikes": MEMBRANE | {"neuron": "adex"}}, r"'spikes\.neuron' must be 'lif' or .*, got 'adex'"),
        ({"structure": {"attention": "linear"}}, r"'structure\.attention' has the unknown kind 'linear'"),
        ({"structure": {"attention": {"0": "auto"}}}, r"'structure\.attention' has the unknown kind 'auto'"),
        ({"structure": {"attention": ["ssa"]}}, r"'structure\.attention' has the unknown kind \['ssa'\]"),
        ({"structure": {"attention": {"0": ["ssa"]}}}, r"'structure\.attention' has the unknown kind \['ssa'\]"),
        ({"structure": {"attention": None}}, r"'structure\.attention' has the unknown kind None"),
        ({"structure": {"attention": "ssa+ssa"}}, r"'structure\.attention' has the unknown kind 'ssa\+ssa'"),
        ({"structure": {"mlp": "relu", "passes": 0}}, r"'structure\.passes' must be from 1 to 1000000, got 0"),
        ({"structure": {"attention": "softmax+tim"}}, r"'structure\.attention' has the unknown kind"),
        # Without a query there is nothing that could interact, with whatever neurons.
        (
            {"structure": {"attention": "conv+tim"}, "spikes": MEMBRANE},
            r"'structure\.attention' has the unknown kind 'conv\+tim'",
        ),
        ({"structure": {"attention": "ssa+tim+conv"}, "spikes": MEMBRANE}, r"has the unknown kind 'ssa\+tim\+conv'"),
        ({"structure": {"mlp": "spiking"}, "spikes": MEMBRANE}, r"'structure\.mlp' has the unknown kind 'spiking'"),
        ({"structure": {"mlp": 3}}, r"'structure\.mlp' has the unknown kind 3"),
        ({"structure": {"mlp": "emsp+tim"}}, r"'structure\.mlp' has the unknown kind"),
        ([1, 2], r"a recipe is a JSON object, got \[1, 2\]"),
        (None, "a recipe is a JSON object, got null"),
    ],
)
def test_values_that_a_field_cannot_have_are_named_by_path(fields: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"structure": {"norm": "static"}}, r"'structure\.norm' is 'static', and every block keeps its own branches"),
        ({"structure": {"readout": "mean"}}, r"'structure\.readout' is 'mean', and every block keeps"),
        ({"structure": {"refit": "ridge"}}, r"'structure\.refit' is 'ridge', and every block keeps"),
        (
            {"structure": {"attention": "shift-softmax", "refit": "none"}},
            r"'structure\.refit' is 'none', and every block keeps",
        ),
        ({"spikes": MEMBRANE}, r"'spikes\.kind' is 'membrane', and every block keeps its own branches"),
        ({"structure": {"mlp": "shift-mlp"}, "spikes": MEMBRANE}, r"'spikes\.kind' is 'membrane', and every block keeps"),
        (
            {"structure": {"attention": {"3": "ssa+conv+tim"}}},
            r"'structure\.attention' is 'ssa\+conv\+tim', and a temporal interaction needs neurons that live in time",
        ),
        (
            {"structure": SPIKING | {"norm": "gated"}, "spikes": MEMBRANE},
            r"'structure\.norm' is 'gated', and spikes are of kind 'membrane'",
        ),
        (
            {"structure": SPIKING, "spikes": MEMBRANE | {"kept": {"schedule": "layer-synchronous"}}},
            r"'spikes\.kept\.schedule' is 'layer-synchronous', and beside membrane neurons it can only be 'stepwise'",
        ),
        ({"structure": SPIKING, "spikes": MEMBRANE | {"kept": {"prior": "mean"}}}, r"'spikes\.kept\.prior' is 'mean', and"),
        ({"structure": SPIKING, "spikes": MEMBRANE | {"kept": {"bias": True}}}, r"'spikes\.kept\.bias' is True, and"),
        ({"structure": SPIKING, "spikes": MEMBRANE | {"kept": {"price": 1e-8}}}, r"'spikes\.kept\.price' is 1e-08, and"),
        ({"max_error": 0.5}, r"'max_error' is given, and neither structure\.attention nor structure\.mlp is 'auto'"),
        ({"structure": SPIKING, "spikes": MEMBRANE, "max_error": 0.5}, "'max_error' is given, and neither"),
        ({"structure": SPIKING, "spikes": MEMBRANE, "max_energy": 0.5}, r"'max_energy' \(--budget\) is given, and needs"),
        ({"spikes": {"thresholds": "static"}, "max_energy": 0.5}, r"'max_energy' \(--budget\) is given, and needs"),
        ({"spikes": {"levels": 0}, "max_energy": 0.5}, r"'max_energy' \(--budget\) is given, and needs"),
        (
            {"structure": {"attention": "auto"}, "spikes": MEMBRANE, "max_error": 0.5, "max_energy": 0.5},
            "'max_error' is given, and max_energy too",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_to_do(fields: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.from_json(fields)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("fields", "path", "hint"),
    [
        ({"timestep": 4}, "timestep", "the fields are: timesteps, structure, spikes"),
        ({"levels": 4}, "levels", "it is written as spikes.levels, with spikes of kind 'coded'"),
        ({"attention": "ssa"}, "attention", "it is written as structure.attention"),
        ({"structure": {"neuron": "if"}}, "structure.neuron", "it is written as spikes.neuron, with spikes of kind 'membrane'"),
        ({"structure": {"heads": 3}}, "structure.heads", "the fields are: attention, mlp, norm, readout, refit, passes"),
        ({"spikes": {"neuron": "plif"}}, "spikes.neuron", "with spikes of kind 'membrane'"),
        ({"structure": SPIKING, "spikes": MEMBRANE | {"shortcut": "sew"}}, "spikes.shortcut", "the fields are: neuron, kept"),
        ({"structure": SPIKING, "spikes": MEMBRANE | {"levels": 2}}, "spikes.levels", "with spikes of kind 'coded'"),
        ({"structure": SPIKING, "spikes": MEMBRANE | {"kept": {"level": 2}}}, "spikes.kept.level", "the fields are: coding"),
    ],
)
def test_unknown_fields_are_named_by_path_and_sent_where_they_belong(fields: object, path: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe field '{path}' is unknown") as caught:
        Recipe.from_json(fields)
    assert hint in caught.value.hint


INFINITE = (float("nan"), float("inf"), -float("inf"))
NASTY = (None, True, 0, -1, 10**5, 10**400, 0.5, *INFINITE, "", "auto", "ssa", [], [[]], {}, {"a": {}})


def paths(fields: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in fields.items():
        yield (name,)
        yield from ((name, *rest) for rest in paths(value)) if isinstance(value, dict) else ()


@pytest.mark.parametrize("name", ["faithful", "qkformer-membrane"])
def test_whatever_a_field_holds_it_is_a_recipe_or_refused(name: str) -> None:
    refused = 0
    for path, value in itertools.product(paths(RECIPES[name].to_json()), NASTY):
        fields = part = RECIPES[name].to_json()
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        try:
            hash(Recipe.from_json(fields))
        except RecipeError as error:
            refused += 1
            assert path[0] in str(error) or error.hint, (path, value)
    assert refused > 10 * len(list(paths(RECIPES[name].to_json())))


@pytest.mark.parametrize("version", [2, 4, "3", True, None, 3.0])
def test_other_versions_are_refused_with_what_to_do(version: object) -> None:
    with pytest.raises(RecipeError, match=r"recipe has version .*, this vit2snn reads version 3") as caught:
        Recipe.from_json({"version": version, "attention": "softmax", "levels": 16})
    assert "parts 'structure' and 'spikes'" in caught.value.hint


def test_parts_refuse_by_themselves() -> None:
    for make, path in (
        (lambda: Coded(levels=-1), "spikes.levels"),
        (lambda: Membrane(neuron="adex"), "spikes.neuron"),  # type: ignore[arg-type]
        (lambda: Membrane(kept=Coded()), "spikes.kept.prior"),
        (lambda: Structure(norm="gated"), "structure.norm"),
        (lambda: Structure({0: "ssa"}), "structure.attention"),  # type: ignore[dict-item]
        (lambda: Recipe(spikes=3), "spikes"),  # type: ignore[arg-type]
        (lambda: Recipe(ignore=["head"]), "ignore"),  # type: ignore[arg-type]
    ):
        with pytest.raises(RecipeError, match=f"recipe field '{path}' "):
            make()


def test_one_vocabulary_of_structures_is_for_both_kinds_of_neurons() -> None:
    structure = Structure({"0": "qk-token+sdsa+conv", "1": "emsa"}, "emsp", norm="static", readout="mean", refit="network")
    for spikes in (Coded(), Membrane(), Membrane("ternary")):
        recipe = Recipe(structure=structure, spikes=spikes)
        assert recipe.structure == structure and Recipe.from_json(recipe.to_json()) == recipe
        assert recipe.spike_driven == isinstance(spikes, Membrane)
    timed = Recipe(structure=Structure("ssa+conv+tim"), spikes=Membrane())
    assert timed.structure.kinds("attention") == {"ssa+conv+tim"}


def test_unknown_names_and_broken_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe and no file 'faithfull'") as error:
        Recipe.find("faithfull")
    assert "faithful" in error.value.hint
    broken = tmp_path / "broken.json"
    for text in ("{", "[" * 100_000, '{"timesteps": 1' + "0" * 5000 + "}"):
        broken.write_text(text)
        with pytest.raises(RecipeError, match="cannot be read"):
            Recipe.find(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.find(broken)
    broken.write_text('{"spikes": {"headroom": NaN}}')
    with pytest.raises(RecipeError, match=r"'spikes\.headroom' must be a finite number, got nan, in '.*broken\.json'"):
        Recipe.find(broken)
    broken.write_text('{"timesteps": 1, "timesteps": 2}')
    with pytest.raises(RecipeError, match=r"broken\.json' cannot be read: it gives 'timesteps' twice"):
        Recipe.find(broken)
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.find(tmp_path)
