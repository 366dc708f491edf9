"""The choice of branches within a budget."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_recipe
from torch import Tensor, nn

from vit2snn.convert import Coded, Membrane, Recipe, Structure, auto as module, to_spiking, trials
from vit2snn.convert.auto import candidates, choose, provisional
from vit2snn.convert.trials import Candidate
from vit2snn.errors import ArtifactError, DataError, ModelError, RecipeError
from vit2snn.finetune import open_folder
from vit2snn.spiking.substitutes import MLPS, is_sum

KINDS = ("ssa", "qk-token", "sdsa")
BLOCKS = 3


def auto(**fields: Any) -> Recipe:
    return make_recipe(attention="auto", **fields)


def random_candidates(seed: int) -> list[Candidate]:
    generator = np.random.default_rng(seed)
    return [
        Candidate(block, "attention", kind, error=generator.uniform(), energy=generator.uniform(), ann_energy=1.0)
        for block in range(BLOCKS)
        for kind in KINDS
    ]


def figures(plan: tuple[str, ...], found: list[Candidate]) -> tuple[float, float]:
    """Mean error and relative energy of a plan."""
    chosen = [candidate for candidate in found if plan[candidate.block] == candidate.kind]
    return sum(c.error for c in chosen) / BLOCKS, sum(c.energy for c in chosen) / BLOCKS


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [{}, {"max_error": 0.4}, {"max_energy": 0.4}])
def test_the_choice_is_the_best_of_all_plans(seed: int, budget: dict[str, float]) -> None:
    found = random_candidates(seed)
    allowed = {
        plan: figures(plan, found)
        for plan in itertools.product(KINDS, repeat=BLOCKS)
        if plan != ("qk-token",) * BLOCKS
        and figures(plan, found)[0] <= budget.get("max_error", np.inf)
        and figures(plan, found)[1] <= budget.get("max_energy", np.inf)
    }
    if not allowed:
        with pytest.raises(RecipeError, match="no plan"):
            choose(auto(**budget), found)
        return
    best = min(allowed, key=lambda plan: allowed[plan]["max_error" in budget])
    chosen = choose(auto(**budget), found)
    assert chosen.structure.attention == {str(block): kind for block, kind in enumerate(best)}
    assert (chosen.max_error, chosen.max_energy) == (None, None)


def test_some_block_mixes_tokens_even_where_it_costs() -> None:
    found = [Candidate(b, "attention", kind, float(kind == "ssa"), 1.0, 1.0) for b in range(2) for kind in ("ssa", "qk-token")]
    chosen = choose(auto(), found).structure.attention
    assert isinstance(chosen, Mapping)
    assert sorted(chosen.values()) == ["qk-token", "ssa"]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_error": 0.01}, r"no plan leaves a mean error of at most 0\.01: the best one leaves 0\.\d+"),
        ({"max_energy": 0.01}, r"no plan needs at most 0\.01 of the ANN's energy: the cheapest needs 0\.\d+"),
    ],
)
def test_a_budget_out_of_reach_is_told_with_the_best_figure(budget: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        choose(auto(**budget), random_candidates(0))
    assert f"raise the recipe's {next(iter(budget))}" in caught.value.hint


def test_weights_that_are_not_finite_are_named_before_anything_is_fitted(vit: nn.Module, images: Tensor) -> None:
    vit.get_parameter("blocks.1.mlp.fc1.weight").data[3, 3] = float("inf")
    with pytest.raises(ModelError, match=r"the weights of 'blocks\.1\.mlp\.fc1\.weight' are not finite"):
        next(candidates(vit, make_recipe(attention="auto", norm="static"), [images]))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit2snn.convert.trials.STEPS", 5)
    monkeypatch.setattr("vit2snn.convert.fit_branches.STEPS", 5)
    monkeypatch.setattr("vit2snn.convert.fitting.STEPS", 5)


def substitutes(spikes: Coded | Membrane | None = None, **fields: Any) -> Recipe:
    norm = "static" if isinstance(spikes, Membrane) else "gated"
    return Recipe(structure=Structure("auto", "auto", norm=norm), spikes=spikes or Coded(), timesteps=2).changed(**fields)


@pytest.fixture
def many() -> Tensor:
    return torch.randn(40, 3, 16, 16)


def test_what_there_is_to_choose_from_is_what_recipes_know_and_the_anns_own() -> None:
    attention, mlp = (set(module.KINDS[field]) for field in ("attention", "mlp"))
    assert all(is_sum(kind) for kind in attention - {"softmax"}) and mlp == {*MLPS, "mlp"}
    first = provisional(substitutes(Membrane(), max_energy=0.5))
    assert (first.structure.attention, first.structure.mlp, first.max_energy) == ("qk-relu+conv", "relu", None)
    assert provisional(Recipe()) == Recipe()


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("spikes", [Coded(), Membrane()], ids=["coded", "membrane"])
def test_substitutes_are_measured_by_the_error_of_the_logits_that_each_alone_causes(
    spikes: Coded | Membrane, vit: nn.Module, many: Tensor
) -> None:
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    found = list(candidates(vit, substitutes(spikes), [many[:30], many[30:]]))
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert len(found) == len(vit.blocks) * sum(map(len, module.KINDS.values()))  # type: ignore[arg-type]
    for candidate in found:
        kept = candidate.kind in ("softmax", "mlp")
        assert (candidate.error == 0) == kept
        if kept:  # 2 additions of 0.9 pJ in place of each MAC of 4.6 pJ
            assert candidate.energy == pytest.approx(candidate.ann_energy * 2 * 0.9 / 4.6)
    by_kind = {(c.block, c.kind): c for c in found}
    tokens, width, hidden = 17, 32, 128
    for block in range(2):
        assert by_kind[block, "qk-channel+conv"].energy < by_kind[block, "qk-relu+conv"].energy
        assert by_kind[block, "relu"].energy < by_kind[block, "emsp"].energy
        assert by_kind[block, "emsp"].ann_energy == pytest.approx(4.6 * 2 * tokens * width * hidden)
        assert by_kind[block, "relu"].energy == pytest.approx(2 * 0.9 * 2 * tokens * width * hidden)


@pytest.mark.usefixtures("few_steps")
def test_no_more_batches_are_read_than_have_the_images(vit: nn.Module, many: Tensor) -> None:
    read = []

    def batches() -> Iterator[Tensor]:
        for batch in many.split(10):
            read.append(len(batch))
            yield batch

    torch.manual_seed(1)
    found = next(candidates(vit, substitutes(), batches(), count=24))
    assert read == [10, 10, 10]
    torch.manual_seed(1)
    assert found == next(candidates(vit, substitutes(), [many[:24]], count=24))


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_coded_neurons_get_the_substitutes_that_keep_to_a_budget(vit: nn.Module, many: Tensor) -> None:
    snn = to_spiking(vit, substitutes(max_error=100.0), many)
    chosen = snn.recipe.structure
    assert set(chosen.attention.values()) <= set(module.KINDS["attention"])  # type: ignore[union-attr]
    assert "softmax" not in chosen.attention.values()  # type: ignore[union-attr]
    assert snn(many[:2]).isfinite().all()
    best = to_spiking(vit, substitutes(), many).recipe.structure
    assert len(best.kinds("attention") | best.kinds("mlp")) == 1  # something is new, and as little as may be
    with pytest.raises(DataError, match="20 images are too few to try substitutes on: 16"):
        to_spiking(vit, substitutes(), many[:20])


@pytest.mark.usefixtures("few_steps")
def test_a_conversion_keeps_the_plan_that_was_chosen(vit: nn.Module, many: Tensor) -> None:
    snn = to_spiking(vit, substitutes(Membrane(), refit="ridge", max_error=100.0), many)
    chosen = snn.recipe.structure
    assert isinstance(chosen.attention, Mapping) and isinstance(chosen.mlp, Mapping)
    assert set(chosen.attention) == set(chosen.mlp) == {"0", "1"}
    assert [plan.attention for plan in snn.plan.blocks] == list(chosen.attention.values())
    assert [plan.mlp for plan in snn.plan.blocks] == list(chosen.mlp.values())
    assert Recipe.from_json(snn.recipe.to_json()) == snn.recipe
    assert snn.recipe.spikes == Membrane() and snn(many[:2]).isfinite().all()
    again = to_spiking(vit, snn.recipe, many).network.state_dict()  # random numbers go on as if nothing had been measured
    assert all(torch.equal(value, again[name]) for name, value in snn.network.state_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_candidates_are_kept_as_they_are_measured_and_depend_on_no_others(
    vit: nn.Module, many: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = substitutes(), open_folder(tmp_path / "out")
    whole = list(candidates(vit, recipe, [many]))
    begun = candidates(vit, recipe, [many], folder=folder)
    assert [next(begun) for _ in range(3)] == whole[:3]
    file = folder / "candidates.json"
    document = json.loads(file.read_text())
    assert [Candidate(**row) for row in document["candidates"]] == whole[:3]
    fitted: list[object] = []
    fit_place = trials.fit_place
    monkeypatch.setattr(trials, "fit_place", lambda *given: (fitted.append(given), fit_place(*given)))
    torch.manual_seed(5)
    assert list(candidates(vit, recipe, [many], folder=folder, resume=True)) == whole
    assert len(fitted) == sum(candidate.error > 0 for candidate in whole) - 3
    assert list(candidates(vit, recipe, [many], folder=folder, resume=True)) == whole and len(fitted) == len(whole) - 4 - 3
    for other, what in ({"seed": 1}, "seed 0, and"), ({"count": 30}, "images '"):
        with pytest.raises(ArtifactError, match=f"was begun with {what}.*would be resumed with"):
            next(candidates(vit, recipe, [many], folder=folder, resume=True, **other))  # type: ignore[arg-type]
    file.write_text(file.read_text().replace("mlp", "mlb"))
    with pytest.raises(ArtifactError, match=r"candidates\[\d+\]"):
        next(candidates(vit, recipe, [many], folder=folder, resume=True))
