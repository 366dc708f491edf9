"""How spike-driven a network is, and the event-driven replay that proves it."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from conftest import brief, enliven, make_recipe
from torch import Tensor, nn

import vit2snn.zoo
from vit2snn.convert import RECIPES, Coded, Recipe, SpikingModel, load_model, to_spiking
from vit2snn.measure import Audit, Meter, audit, replay

SPIKING = make_recipe(attention="ssa+conv", mlp="relu", norm="static", readout="mean", refit="ridge", timesteps=3)
REPLAYED = {
    "graded": Recipe(timesteps=3),
    "powers of two": make_recipe(timesteps=3, levels=3, ratio=2.0, bias=False, granularity="channel"),
    "ternary, rotated": make_recipe(timesteps=3, levels=1, rotation=True),
    "binary rate coding": make_recipe(timesteps=3, levels=1, signed=False, coding="rate", thresholds="static", prior="minimum"),
    "decaying": make_recipe(timesteps=3, levels=4, ratio=2.0, coding="decaying"),
    "bursts": make_recipe(timesteps=2, levels=1, spikes_per_step=3, input_spikes=3),
    "layer-synchronous": make_recipe(timesteps=3, levels=1, schedule="layer-synchronous"),
    "membranes": SPIKING,
    "experts on membranes": SPIKING.changed(attention={"0": "emsa+tim", "1": "experts+qk-relu"}, mlp="emsp"),
    "two signs on gates": SPIKING.changed(attention={"0": "qk-mixed", "1": "sdsa"}, neuron="ternary"),
    "softmax beside membranes": SPIKING.changed(attention="softmax", norm="layernorm", readout="model"),
    "coded experts": make_recipe(
        timesteps=2,
        structure=dataclasses.replace(RECIPES["experts"].structure, refit="none"),
        spikes=Coded(levels=3, ratio=2.0),
    ),
}
ZOO = {
    "qkformer_4_384_cifar10": {"dims": [16, 32, 64]},
    "sdt_2_512_cifar10": {"dim": 64},
    "semm_spikformer_4_384_cifar10": {"dim": 64, "depth": 1},
    "tim_2_256_cifar10dvs": {"dim": 64, "num_heads": 4},
}


def added(model: SpikingModel | nn.Module, images: Tensor) -> float:
    """Additions that the meter counts in operations that the replay plays event by event."""
    network = model.network if isinstance(model, SpikingModel) else model
    with torch.no_grad(), Meter(network) as meter:
        run = model if isinstance(model, SpikingModel) else model.readout  # type: ignore[assignment, operator]
        run(meter.show(images), chunk=1)  # type: ignore[operator]
    return sum(float(tally.accumulates.sum()) for tally in meter.tallies if tally.macs)


@pytest.mark.parametrize("name", REPLAYED)
def test_adding_weights_where_events_arrive_gives_the_same_logits(name: str, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, REPLAYED[name], images)
    found = replay(snn, images[:2])
    assert found.difference < 1e-13
    assert found.operations == len([m for m in snn.plan.modules if m.macs]) or found.operations > 10
    if snn.recipe.spike_driven:
        assert found.left[:1] == ("patch_embed.proj",)
    else:
        assert found.left == ()


@pytest.mark.parametrize(
    "name",
    [
        "powers of two",
        "bursts",
        "layer-synchronous",
        "membranes",
        "experts on membranes",
        "two signs on gates",
        "coded experts",
    ],
)
def test_the_replay_makes_the_additions_that_the_meter_counts(name: str, vit: nn.Module, images: Tensor) -> None:
    recipe = REPLAYED[name].changed(bias=False)  # sums for biases are no events
    snn = to_spiking(vit, recipe, images)
    found = replay(snn, images[:2])
    assert found.additions == added(snn.double(), images[:2].double())


@pytest.mark.parametrize("name", ZOO)
def test_models_of_the_zoo_are_replayed_addition_by_addition(name: str) -> None:
    assert name in vit2snn.zoo.VARIANTS
    model = timm.create_model(name, **ZOO[name]).eval()
    events = model.in_chans == 2
    x = torch.randint(0, 3, (10, 1, 2, 64, 64)).float() if events else torch.rand(2, 3, 32, 32)
    enliven(model, x)
    found = replay(model, x)
    assert found.difference < 1e-13
    assert len(found.left) == (0 if events else 1)  # the layer that sees the image
    assert found.additions == added(model.double(), x.double())


def test_the_replay_notices_a_spike_that_is_not_there(vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lost addition is seen in the logits."""
    from vit2snn.measure import events

    snn, whole = to_spiking(vit, Recipe(timesteps=1), images), events._some
    lost: list[bool] = []

    def without_the_first(found: Tensor):  # type: ignore[no-untyped-def]
        for index, value in whole(found):
            if not lost:
                lost.append(True)
                index, value = tuple(axis[1:] for axis in index), value[1:]
            yield index, value

    monkeypatch.setattr(events, "_some", without_the_first)
    assert replay(snn, images[:1]).difference > 1e-6


@pytest.mark.slow
def test_the_embedded_model_is_replayed(demo_sample: tuple[Tensor, Tensor, Tensor]) -> None:
    calibration, scored, _ = demo_sample
    for name in ("faithful", "ternary-synchronous", "qkformer-membrane"):
        recipe = brief(name).changed(timesteps=2)
        found = replay(to_spiking(load_model("demo"), recipe, calibration[:32]), scored[:1])
        assert found.difference < 1e-13
        assert found.additions > 1e6


# The audit


def audited(recipe: Recipe, model: nn.Module, images: Tensor) -> Audit:
    return audit(to_spiking(model, recipe, images), [images[:4], images[4:]])


def test_operands_are_what_they_are_seen_to_be(vit: nn.Module, images: Tensor) -> None:
    kinds = {
        "geometric": make_recipe(timesteps=2, ratio=2**0.5, observer="max", levels=4),
        "power-of-two": make_recipe(timesteps=2, ratio=2.0, levels=4),
        "ternary": make_recipe(timesteps=2, levels=1),
        "binary": make_recipe(timesteps=2, levels=1, signed=False, prior="minimum"),
        "analog": make_recipe(timesteps=1, levels=0),
    }
    for kind, recipe in kinds.items():
        rows = {(row.module, row.function): row for row in audited(recipe, vit, images).rows}
        assert rows["blocks.*.mlp.fc1", "linear"].operands == (kind,)
        assert rows["blocks.*.mlp.fc1", "linear"].copies == (2 if kind == "geometric" else 1)
        assert rows["blocks.*.mlp.fc1", "linear"].addition_only == (kind != "analog")
        assert rows["blocks.*.mlp.act", "gelu"].operands == ("analog",)
        assert not rows["blocks.*.mlp.act", "gelu"].addition_only


def test_the_share_is_that_of_the_counts(vit: nn.Module, images: Tensor) -> None:
    result = audited(make_recipe(timesteps=2, levels=3), vit, images)
    adds, multiplies = (sum(getattr(row, name) for row in result.rows) for name in ("accumulates", "multiplies"))
    assert result.share == pytest.approx(adds / (adds + multiplies))
    assert f"{100 * result.share:.1f} % of the operations of this network are additions" in result.sentence()
    assert "nonlinear functions" in result.sentence() and "biases" in result.sentence()
    assert result.images == len(images)
    document = result.to_json()
    assert document["addition_only"] is False and document["additions"] == result.share


def test_only_the_image_is_multiplied_in_a_spike_driven_network(vit: nn.Module, images: Tensor) -> None:
    result = audited(SPIKING, vit, images)
    assert [row.module for row in result.rows if not row.addition_only] == ["patch_embed.proj"]
    kinds = {kind for row in result.rows if row.module != "patch_embed.proj" for kind in row.operands}
    assert kinds <= {"silent", "binary", "integer"}


def test_a_network_on_events_is_spike_driven_throughout() -> None:
    model = timm.create_model("tim_2_256_cifar10dvs", dim=64, num_heads=4).eval()
    frames = torch.randint(0, 3, (10, 2, 2, 64, 64)).float()
    enliven(model, frames)
    result = audit(model, [frames])
    assert result.share == 1
    assert result.sentence().startswith("All operations of this network are additions")
    assert result.to_json()["addition_only"]


def test_spikes_that_pass_through_a_real_factor_are_numbers(vit: nn.Module, images: Tensor) -> None:
    """The audit looks at values, and not at the names of modules."""

    class Blurred(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.neuron, self.weight = layer.neuron, layer.weight

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.neuron(x)
            return nn.functional.linear(0.5 * (spikes + spikes.roll(1, -1)), self.weight)

    snn = to_spiking(vit, make_recipe(timesteps=2, levels=1), images)
    snn.network.blocks[0].mlp.fc1 = Blurred(snn.network.blocks[0].mlp.fc1)
    rows = {row.module: row for row in audit(snn, [images]).rows}
    assert rows["blocks.0.mlp.fc1"].operands == ("analog",)
    assert not rows["blocks.0.mlp.fc1"].addition_only
    assert rows["blocks.1.mlp.fc1"].operands == ("ternary",)
