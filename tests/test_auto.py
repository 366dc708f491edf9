"""The choice of branches within a budget."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_recipe
from torch import Tensor, nn

from vit2snn.convert import Coded, Recipe, Structure, to_spiking
from vit2snn.convert.auto import SUBSTITUTES, candidates, choose
from vit2snn.convert.trials import Candidate
from vit2snn.errors import DataError, ModelError, RecipeError
from vit2snn.spiking.branches import kinds

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


def test_candidates_are_measured_on_images(vit: nn.Module, images: Tensor) -> None:
    recipe = make_recipe(attention="auto", mlp="auto", norm="batchnorm", readout="mean", neuron="if")
    found = list(candidates(vit, recipe, images.split(5)))
    assert len(found) == 2 * (len(kinds("attention")) + len(kinds("mlp")))
    by_kind = {(c.block, c.kind): c for c in found}
    assert by_kind[0, "qk-token"].energy < by_kind[0, "ssa"].energy < by_kind[0, "emsa"].energy * 1.5
    assert by_kind[0, "spiking"].energy < by_kind[0, "emsp"].energy
    tokens, width, hidden = 17, 32, 128
    assert by_kind[1, "emsp"].ann_energy == pytest.approx(4.6 * 2 * tokens * width * hidden)
    assert all(0 < c.error < 1.2 for c in found)
    # A spike at each weight, in each timestep, is the most that there can be.
    assert 0 < by_kind[0, "spiking"].energy < 0.9 * recipe.timesteps * 2 * tokens * width * hidden


def test_no_more_batches_are_read_than_have_the_images(vit: nn.Module, images: Tensor) -> None:
    read = []

    def batches() -> Iterator[Tensor]:
        for batch in images.split(5):
            read.append(len(batch))
            yield batch

    recipe = auto(norm="batchnorm", refit="none")
    torch.manual_seed(1)
    found = next(candidates(vit, recipe, batches(), count=7))
    assert read == [5, 5]
    torch.manual_seed(1)
    assert found == next(candidates(vit, recipe, [images[:7]], count=7))


def test_a_conversion_keeps_the_plan_that_was_chosen(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, make_recipe(attention="auto", norm="batchnorm", readout="mean", neuron="if", max_energy=0.9), images)
    chosen = snn.recipe.structure.attention
    assert isinstance(chosen, Mapping)
    assert set(chosen) == {"0", "1"}
    assert [plan.attention for plan in snn.plan.blocks] == list(chosen.values())
    assert Recipe.from_json(snn.recipe.to_json()) == snn.recipe


def test_weights_that_are_not_finite_are_named_before_anything_is_fitted(vit: nn.Module, images: Tensor) -> None:
    vit.get_parameter("blocks.1.mlp.fc1.weight").data[3, 3] = float("inf")
    with pytest.raises(ModelError, match=r"the weights of 'blocks\.1\.mlp\.fc1\.weight' are not finite"):
        next(candidates(vit, make_recipe(attention="auto", norm="batchnorm"), [images]))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit2snn.convert.trials.STEPS", 5)
    monkeypatch.setattr("vit2snn.convert.fit_branches.STEPS", 5)
    monkeypatch.setattr("vit2snn.convert.fitting.STEPS", 5)


def substitutes(**fields: Any) -> Recipe:
    return Recipe(structure=Structure("auto", "auto", norm="gated"), spikes=Coded(), timesteps=2).changed(**fields)


@pytest.mark.usefixtures("few_steps")
def test_substitutes_are_measured_by_the_error_of_the_logits_that_each_alone_causes(vit: nn.Module) -> None:
    images = torch.randn(40, 3, 16, 16)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    found = list(candidates(vit, substitutes(), [images[:30], images[30:]]))
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert len(found) == len(vit.blocks) * sum(map(len, SUBSTITUTES.values()))  # type: ignore[arg-type]
    for candidate in found:
        kept = candidate.kind in ("softmax", "mlp")
        assert (candidate.error == 0) == kept
        if kept:  # 2 additions of 0.9 pJ in place of each MAC of 4.6 pJ
            assert candidate.energy == pytest.approx(candidate.ann_energy * 2 * 0.9 / 4.6)
    cheap, dear = ({c.block: c for c in found if c.kind == kind} for kind in ("qk-channel+conv", "qk-relu+conv"))
    assert all(cheap[block].energy < dear[block].energy for block in cheap)


@pytest.mark.usefixtures("few_steps")
def test_coded_neurons_get_the_substitutes_that_keep_to_a_budget(vit: nn.Module) -> None:
    images = torch.randn(40, 3, 16, 16)
    snn = to_spiking(vit, substitutes(max_error=100.0), images)
    chosen = snn.recipe.structure
    assert set(chosen.attention.values()) <= set(SUBSTITUTES["attention"])  # type: ignore[union-attr]
    assert "softmax" not in chosen.attention.values()  # type: ignore[union-attr]
    assert snn(images[:2]).isfinite().all()
    best = to_spiking(vit, substitutes(), images).recipe.structure
    assert len(best.kinds("attention") | best.kinds("mlp")) == 1  # something is new, and as little as may be
    with pytest.raises(DataError, match="20 images are too few to try substitutes on: 16"):
        to_spiking(vit, substitutes(), images[:20])
