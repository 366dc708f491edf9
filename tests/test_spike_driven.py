"""Membrane neurons in a ViT's substitutes: what the network is then made of, what it inherits, and how it is run and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import brief, make_recipe, make_vit
from torch import Tensor, nn

import vit2snn
from vit2snn.convert import RECIPES, Recipe, SpikingModel, to_spiking
from vit2snn.errors import ArtifactError
from vit2snn.measure import diagnose, evaluate
from vit2snn.spiking import Balanced, CodedNeuron
from vit2snn.spiking.substitutes.base import shared_key
from vit2snn.tracing import record

PRESETS = ("qkformer-membrane", "experts-membrane", "spike-driven")
DRIVEN = make_recipe(attention="ssa+conv", mlp="relu", norm="static", readout="mean", refit="ridge")
NEURONS = ("if", "lif", "plif", "integer-lif", "ternary")


def change(**fields: Any) -> Recipe:
    return DRIVEN.changed(**fields)


@pytest.fixture(scope="module")
def converted() -> dict[str, SpikingModel]:
    torch.manual_seed(0)
    images = torch.randn(12, 3, 16, 16)
    found = {preset: to_spiking(make_vit(), brief(preset), images) for preset in PRESETS}
    found |= {neuron: to_spiking(make_vit(), change(neuron=neuron, timesteps=3), images) for neuron in NEURONS[1:]}
    found["tim"] = to_spiking(make_vit(), change(attention={"0": "emsa+tim", "1": "qk-mixed+conv+tim"}), images)
    # Of a part that is called for each line of a function, the neurons are apart.
    found["qk-relu"] = to_spiking(make_vit(), change(attention={"0": "qk-relu", "1": "experts+sdsa"}, mlp="emsp"), images)
    return found


def inputs_of(network: nn.Module, *kinds: type[nn.Module]) -> dict[str, list[Tensor]]:
    """The inputs that modules of these kinds will get."""
    seen: dict[str, list[Tensor]] = {}
    for name, module in network.named_modules():
        if isinstance(module, kinds):
            module.register_forward_pre_hook(lambda m, inputs, name=name: seen.setdefault(name, []).append(inputs[0].detach()))
    return seen


@pytest.mark.parametrize("preset", PRESETS)
def test_no_layernorm_softmax_gelu_or_relu_remains_and_all_neurons_are_membranes(preset: str, converted: Any) -> None:
    network = converted[preset].network
    own = (nn.LayerNorm, nn.GELU, nn.Softmax, CodedNeuron)
    assert not [m for m in network.modules() if isinstance(m, own)]
    standing_in = {m.function for m in network.modules() if isinstance(m, Balanced)}
    rectifiers = {m for m in network.modules() if isinstance(m, (nn.ReLU, nn.Hardtanh))}
    assert rectifiers and rectifiers <= standing_in
    functions = {operation.function for operation in record(network, (3, 16, 16))}
    assert functions.isdisjoint({"layer_norm", "softmax", "gelu", "scaled_dot_product_attention"})


def test_linear_layers_read_spikes_in_front_of_them_or_of_the_function_before(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, DRIVEN, images)
    seen = inputs_of(snn.network, nn.Linear)
    given: dict[str, Tensor] = {}
    for name, module in snn.network.named_modules():
        if isinstance(module, Balanced):
            module.register_forward_hook(lambda m, i, output, name=name: given.update({name: output.detach()}))
    snn(images)
    for name in seen:
        before = given[name.replace("fc2", "act") if name.endswith("fc2") else f"{name}.neuron"]
        assert len(before.unique()) == 2, name  # 0 and the height of the spikes
    torch.testing.assert_close(seen["blocks.0.mlp.fc2"][0], given["blocks.0.mlp.act"], rtol=0, atol=0)


@pytest.mark.parametrize("name", [*PRESETS, *NEURONS[1:], "tim", "qk-relu"])
@torch.no_grad()
def test_logits_depend_neither_on_the_batch_nor_on_later_timesteps(name: str, converted: Any, images: Tensor) -> None:
    snn = converted[name].double()
    images = images.double()
    whole = snn(images, 5)
    torch.testing.assert_close(snn(images[3:5], 5), whole[:, 3:5])
    torch.testing.assert_close(snn(images, 2), whole[:2])
    torch.testing.assert_close(snn(images, 5, chunk=2), whole)
    assert not torch.equal(whole[0], whole[1])
    frames = images.expand(5, *images.shape)
    torch.testing.assert_close(snn(frames, 5), whole)
    snn.float()


@pytest.mark.parametrize(
    "recipe",
    [
        *(brief(preset) for preset in PRESETS),
        change(attention={"*": "ssa+tim", "1": "sdsa"}, neuron="lif"),
        change(attention="qk-channel", neuron="ternary"),
        change(attention="emsa+conv+tim", mlp="emsp", neuron="plif", norm="layernorm", readout="class-token"),
        change(neuron="integer-lif", attention="experts+qk-relu"),
        change(attention={"0": "qk-token"}, refit="none"),
        change(mlp="mlp", norm="shift-layernorm"),
        RECIPES["shift"],
    ],
    ids=lambda recipe: f"{recipe.structure.attention}-{recipe.structure.mlp}-{recipe.spikes}",
)
@torch.no_grad()
def test_every_kind_runs_and_comes_back_from_disk(recipe: Recipe, vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    snn = to_spiking(vit, recipe, images)
    logits = snn(images)
    assert logits.shape == (4, 12, 7)
    assert torch.isfinite(logits).all()
    assert logits[-1].std(0).min() > 0  # images are told apart
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    torch.testing.assert_close(snn.ann(images), vit(images))
    snn.save(tmp_path / "out", errors={row.name: row.relative_error for row in diagnose(snn, images[:2])})
    assert (tmp_path / "out" / "ann.safetensors").is_file()
    again = vit2snn.load(tmp_path / "out")
    assert again.recipe == recipe
    assert again.plan == snn.plan
    assert torch.equal(again(images), logits)
    assert torch.equal(again(images, 7), snn(images, 7))
    assert torch.equal(again.ann(images), snn.ann(images))
    result = evaluate(again, [(images, torch.arange(12) % 7)])
    assert result.points[-1].top1 == pytest.approx(100 * float((logits[-1].argmax(1) == torch.arange(12) % 7).float().mean()))
    assert 0 < result.points[0].spikes_per_neuron < result.points[-1].spikes_per_neuron


@torch.no_grad()
def test_a_network_of_half_precision_comes_back_from_disk(images: Tensor, tmp_path: Path) -> None:
    half = images.half()
    snn = to_spiking(make_vit().half(), change(attention="ssa+conv+tim"), half)
    snn.save(tmp_path / "out")
    again = vit2snn.load(tmp_path / "out")
    logits = snn(half, 6)
    assert logits.dtype == torch.float16
    assert torch.equal(again(half, 6), logits)


@pytest.mark.slow
def test_refitting_recovers_much_of_the_accuracy(
    demo_sample: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vit2snn.convert import load_model

    monkeypatch.setattr("vit2snn.convert.fit_branches.STEPS", 60)
    monkeypatch.setattr("vit2snn.convert.fitting.STEPS", 60)
    calibration, images, labels = demo_sample
    result = evaluate(to_spiking(load_model("demo"), "spike-driven", calibration), [(images, labels)])
    assert result.points[-1].top1 > 40  # of ten classes, from 64 images without labels
    assert result.modules[0].name.startswith("blocks.")


def test_blocks_may_keep_their_attention_beside_membranes(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, change(attention={"1": "ssa"}, norm="layernorm", readout="model"), images)
    kept = {name.split(".")[1] for name, neuron in snn.neurons().items() if isinstance(neuron, CodedNeuron)}
    assert kept == {"0"}
    assert snn.plan.driven("blocks.0.mlp.fc1") and snn.plan.driven("blocks.0.attn.qkv")
    assert all(neuron.threshold.numel() for neuron in snn.neurons().values() if isinstance(neuron, CodedNeuron))
    membranes = {name.rpartition(".")[0] for name, m in snn.network.named_modules() if isinstance(m, Balanced)}
    assert {"blocks.0.mlp.fc1", "blocks.1.attn.qkv", "head"} <= membranes and "blocks.0.attn.qkv" not in membranes
    assert torch.isfinite(snn(images)).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_layer_scale_and_registers_are_inherited(preset: str, images: Tensor) -> None:
    vit = make_vit(init_values=0.5, reg_tokens=2, global_pool="avg", class_token=True)
    snn = to_spiking(vit, brief(preset), images)
    assert not [m for m in snn.network.modules() if type(m).__name__ == "LayerScale"]
    assert diagnose(snn, images)[-1].relative_error[-1] < 0.9


def test_a_shared_key_gives_the_scores_of_all_heads_if_they_share_one() -> None:
    torch.manual_seed(0)
    key = torch.randn(8, 16)
    query, shared = torch.randn(16, 16), torch.cat([torch.randn(8, 8) @ key, torch.randn(8, 8) @ key])
    queries, one = shared_key(query, shared, heads=2)
    assert one.shape == (8, 16)
    for head in range(2):
        rows = slice(8 * head, 8 * head + 8)
        torch.testing.assert_close(queries[rows].T @ one, query[rows].T @ shared[rows], rtol=1e-3, atol=1e-3)


def test_new_parameters_are_those_without_a_counterpart(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, change(attention="emsa+tim", mlp="emsp"), images)
    new = {name for name, _ in snn.network.named_parameters() if snn.is_new(name)}
    assert "blocks.0.attn.terms.emsa.router.weight" in new
    assert "blocks.0.attn.terms.emsa.rectify_query.interaction.module.conv.weight" in new
    assert new.isdisjoint({"blocks.0.mlp.fc1.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.neuron.log_threshold"})


def test_a_missing_teacher_is_told(vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    to_spiking(vit, DRIVEN, images).save(tmp_path / "out")
    (tmp_path / "out" / "ann.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"ann\.safetensors' cannot be read: No such file"):
        vit2snn.load(tmp_path / "out")
