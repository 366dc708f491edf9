"""What a run costs, and keeping to a budget."""

from __future__ import annotations

import pytest
import torch
from conftest import make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.convert import Recipe, SpikingModel, to_spiking
from vit2snn.convert.conversion import structure
from vit2snn.errors import RecipeError
from vit2snn.measure import evaluate
from vit2snn.measure.charges import FUNCTION_MACS
from vit2snn.measure.spending import dense, spent
from vit2snn.tracing import depth

SIZE = (3, 16, 16)


@pytest.fixture
def snn(vit: nn.Module, images: Tensor) -> SpikingModel:
    return to_spiking(vit, make_recipe(timesteps=2, levels=3, input_spikes=1), images)


def test_the_longest_way_is_counted_in_neurons(vit: nn.Module) -> None:
    # In a block: qkv, query and key, weights, proj, fc1, fc2.
    assert depth(structure(vit, Recipe(), SIZE).network, SIZE) == 2 + 2 * 6


def test_the_ann_costs_what_the_plan_says(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, Recipe(timesteps=1, ignore=("blocks.0.mlp.*",)), images)
    tokens, dim = 17, 32
    values = 5 * tokens * dim + 2 * 2 * tokens**2 + 2 * tokens * 4 * dim  # LayerNorm, softmax, GELU
    ann = dense(snn, images)
    assert ann.macs == snn.plan.macs
    assert ann.functions == FUNCTION_MACS * values
    assert ann.energy() == pytest.approx(4.6 * (ann.macs + ann.functions))


def test_points_add_up_the_operations(snn: SpikingModel, images: Tensor) -> None:
    result = evaluate(snn, [(images, torch.zeros(len(images), dtype=torch.int64))])
    ann = dense(snn, images)
    added = multiplied = 0.0
    for t, point in enumerate(result.points):
        added += sum(operation.accumulates[t] for operation in result.costs.operations)
        multiplied += sum(operation.multiplies[t] for operation in result.costs.operations)
        assert point.operations == pytest.approx((added + multiplied) / ann.macs)
        assert point.energy == pytest.approx((0.9 * added + 4.6 * multiplied) / ann.energy())
        assert point.latency == t + 1
    found = spent(snn, images)
    assert found.total == pytest.approx(result.points[-1].energy)
    multiplied_by_ann = 4.6 * multiplied / ann.energy()
    assert found.silent == pytest.approx(multiplied_by_ann)


def test_an_operation_that_no_neuron_drives_costs_as_much_in_every_timestep_as_in_the_ann(
    vit: nn.Module, images: Tensor
) -> None:
    snn = to_spiking(vit, Recipe(timesteps=3, ignore=("blocks.0.mlp.fc1",)), images)
    costs = evaluate(snn, [(images, torch.zeros(len(images), dtype=torch.int64))]).costs
    (fc1,) = [operation for operation in costs.operations if operation.module == "blocks.0.mlp.fc1"]
    assert fc1.multiplies == (fc1.macs,) * 3 == (17 * 32 * 128,) * 3
    assert fc1.accumulates == (0.0,) * 3
    assert fc1.operands[0].kind == "analog" and not fc1.operands[0].neuron


@pytest.mark.slow
def test_a_budget_is_kept_by_the_lowest_price(images: Tensor) -> None:
    model = make_vit(embed_dim=96, num_heads=4)  # wide: spikes cost more than functions
    free = spent(to_spiking(model, Recipe(timesteps=2), images), images).total
    snn = to_spiking(model, Recipe(timesteps=2, max_energy=0.8 * free), images)
    assert 0.7 * free < spent(snn, images).total <= 0.8 * free
    assert snn.recipe.coded.price > 0 and snn.recipe.max_energy is None
    assert to_spiking(model, Recipe(timesteps=2, max_energy=2 * free), images).recipe.coded.price == 0


def test_a_budget_that_cannot_be_kept_is_refused_with_the_figures(vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(RecipeError, match=r"0.01 of the ANN's energy is out of reach in 2 timesteps: .* needs 0\.\d+"):
        to_spiking(vit, Recipe(timesteps=2, max_energy=0.01), images)


@pytest.mark.parametrize("schedule", ["stepwise", "layer-synchronous"])
def test_the_convention_is_rate_by_layer_of_one_run(schedule: str, vit: nn.Module, images: Tensor) -> None:
    """0.9 pJ times spikes per value times multiply-accumulates, whichever way the timesteps of a run are told."""
    snn = to_spiking(vit, make_recipe(timesteps=3, levels=1, schedule=schedule), images)
    costs = evaluate(snn, [(images, torch.zeros(len(images), dtype=torch.int64))]).costs
    expected = 0.0
    for operation in costs.operations:
        rates = [o.rate[-1] if schedule == "layer-synchronous" else sum(o.rate) for o in operation.operands]
        expected += 0.9 * operation.macs * min(rates, default=0.0)
    assert costs.convention == pytest.approx(expected)
