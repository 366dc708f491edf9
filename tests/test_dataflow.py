"""What hangs on each neuron, and what a run costs."""

from __future__ import annotations

import pytest
import torch
from conftest import make_vit
from torch import Tensor, nn

from vit2snn.convert import Recipe, SpikingModel, to_spiking
from vit2snn.convert.dataflow import ANALOG_COST, dataflow
from vit2snn.convert.energy import energy
from vit2snn.convert.model import structure
from vit2snn.errors import RecipeError
from vit2snn.evaluation import evaluate
from vit2snn.spiking import Event, probing

SIZE = (3, 16, 16)


@pytest.fixture
def snn(vit: nn.Module, images: Tensor) -> SpikingModel:
    return to_spiking(vit, Recipe(timesteps=2, levels=3, input_spikes=1), images)


def test_fan_out_is_what_a_spike_meets(vit: nn.Module) -> None:
    flow = dataflow(structure(vit, Recipe(), SIZE).network, SIZE)
    tokens, dim, head = 17, 32, 16
    assert flow.fan_out["patch_embed.proj.neuron"] == dim
    assert flow.fan_out["blocks.0.attn.qkv.neuron"] == 3 * dim
    for operand, fan_out in {"query": tokens, "key": tokens, "weights": head, "value": tokens}.items():
        assert flow.fan_out[f"blocks.1.attn.spiking_attention.{operand}"] == fan_out
    assert flow.fan_out["blocks.1.mlp.fc2.neuron"] == dim
    assert flow.fan_out["head.neuron"] == 7
    assert flow.depth == 2 + 2 * 6  # in a block: qkv, query and key, weights, proj, fc1, fc2


def test_operations_are_those_of_the_plan(vit: nn.Module) -> None:
    snn = structure(vit, Recipe(ignore=("blocks.0.mlp.*",)), SIZE)
    flow = dataflow(snn.network, SIZE)
    tokens, dim = 17, 32
    assert flow.macs == snn.plan.macs
    assert flow.undriven == 2 * tokens * dim * 4 * dim
    values = 5 * tokens * dim + 2 * 2 * tokens**2 + 2 * tokens * 4 * dim  # LayerNorm, softmax, GELU
    assert flow.analog == ANALOG_COST * values
    assert not any(parameter.is_meta for parameter in snn.network.parameters())


@torch.no_grad()
def test_caused_operations_are_counted_spike_by_spike(snn: SpikingModel, images: Tensor) -> None:
    """Beside a count by hand: every spike of a linear layer meets its outputs, and of a product each row of the other side."""
    by_hand = torch.zeros(2, dtype=torch.float64)
    shapes = {"qkv": 96, "fc1": 128, "fc2": 32, "attn.proj": 32, "query": 17, "key": 17, "weights": 16, "value": 17}
    shapes |= {"patch_embed.proj": 32, "head": 7}

    def count(name: str, event: Event) -> None:
        met = next(fan_out for part, fan_out in shapes.items() if part in name.removesuffix(".neuron"))
        by_hand[event.t] += met * sum(int((spike != 0).sum()) for spike in event.spikes)

    with probing(snn.network, {name: lambda event, name=name: count(name, event) for name in snn.neurons()}):
        snn(images, 2)
    result = evaluate(snn, [(images, torch.zeros(len(images), dtype=torch.int64))])
    flow = dataflow(snn.network, SIZE)
    caused = by_hand.cumsum(0) / len(images)
    assert [p.operations for p in result.points] == pytest.approx((caused / flow.macs).tolist())
    for t, point in enumerate(result.points, start=1):
        spent = 0.9 * float(caused[t - 1]) + 4.6 * t * flow.analog
        assert point.energy == pytest.approx(spent / (4.6 * (flow.macs + flow.analog)))
        assert point.latency == t
    assert energy(snn, images) == pytest.approx(result.points[-1].energy)


def test_a_budget_is_kept_by_the_lowest_price(images: Tensor) -> None:
    model = make_vit(embed_dim=96, num_heads=4)  # wide: spikes cost more than functions
    free = energy(to_spiking(model, Recipe(timesteps=2), images), images)
    snn = to_spiking(model, Recipe(timesteps=2, max_energy=0.8 * free), images)
    assert 0.7 * free < energy(snn, images) <= 0.8 * free
    assert snn.recipe.price > 0 and snn.recipe.max_energy is None
    assert to_spiking(model, Recipe(timesteps=2, max_energy=2 * free), images).recipe.price == 0


def test_a_budget_that_cannot_be_kept_is_refused_with_the_figures(vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(RecipeError, match=r"0.01 of the ANN's energy is out of reach in 2 timesteps: .* needs 0\.\d+"):
        to_spiking(vit, Recipe(timesteps=2, max_energy=0.01), images)
