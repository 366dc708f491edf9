"""The block-by-block fields of a recipe, and the plans that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from conftest import make_recipe, make_vit
from torch import nn

from vit2snn.cli import cli
from vit2snn.convert import RECIPES, plan
from vit2snn.convert.blocks import kinds_by_block
from vit2snn.errors import ModelError, RecipeError, UnsupportedModuleError

BLOCKS = [f"blocks.{index}" for index in range(6)]
SIZE = (3, 16, 16)


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [
        ("ssa", ["ssa"] * 6),
        ({"0-3": "qk-token", "4-5": "ssa"}, ["qk-token"] * 4 + ["ssa"] * 2),
        ({"first half": "qk-token", "second half": "emsa"}, ["qk-token"] * 3 + ["emsa"] * 3),
        ({"*": "ssa", "2": "sdsa+tim"}, ["ssa", "ssa", "sdsa+tim", "ssa", "ssa", "ssa"]),
        ({"blocks.[45]": "qk-channel"}, ["softmax"] * 4 + ["qk-channel"] * 2),
    ],
)
def test_a_choice_names_a_kind_for_each_block(choice: Any, kinds: list[str]) -> None:
    assert kinds_by_block("attention", choice, BLOCKS) == kinds


@pytest.mark.parametrize("key", ["6", "4-6", "5-4", "blocks.7", "last", "-1"])
def test_a_block_that_is_not_there_is_named(key: str) -> None:
    with pytest.raises(RecipeError, match=rf"'structure\.attention' names block '{key}', and .* has the blocks 0-5") as caught:
        kinds_by_block("attention", {key: "ssa"}, BLOCKS)
    assert "first half" in caught.value.hint


def test_a_plan_that_mixes_no_tokens_is_refused_with_the_reason(vit: nn.Module) -> None:
    blind = make_recipe(attention={"0": "qk-token+conv", "1": "conv"}, mlp="relu")
    with pytest.raises(
        RecipeError, match="no block of this plan mixes all tokens: attention of the kind conv, qk-tok"
    ) as caught:
        plan(vit, blind, SIZE)
    assert '"second half": "ssa+conv"' in caught.value.hint
    mixed = make_recipe(attention={"0": "qk-token", "1": "softmax"}, mlp="relu")
    assert plan(vit, mixed, SIZE).blocks[1].attention == "softmax"


def test_a_temporal_interaction_mixes_tokens(vit: nn.Module) -> None:
    planned = plan(vit, make_recipe(attention="qk-token+conv+tim", mlp="relu"), SIZE)
    assert [block.attention for block in planned.blocks] == ["qk-token+conv+tim"] * 2


NEURONS = {
    "qkformer-membrane": {"qk-token.gate.rectify", "qk-token.gate.clip", "ssa.rectify_query", "ssa.rectify_key"},
    "experts-membrane": {"experts.rectify"},
    "spike-driven": {"ssa.rectify_query", "ssa.rectify_key"},
}


@pytest.mark.parametrize("preset", NEURONS)
def test_the_plan_has_a_row_for_each_operation_and_each_neuron_and_their_cost(preset: str, vit: nn.Module) -> None:
    planned = plan(vit, RECIPES[preset], SIZE)
    rows = {module.name: module for module in planned.modules}
    neurons = {name for name, row in rows.items() if row.becomes}
    terms = "blocks.0.attn.terms."
    assert {name.removeprefix(terms) for name in neurons if name.startswith(terms)} == NEURONS[preset]
    assert {rows[name].becomes for name in neurons} == {"IF"}
    assert (rows["blocks.0.mlp.act"].type, rows["blocks.0.mlp.act"].action) == ("ReLU", "spiking")
    assert ("blocks.0.mlp.clip" in rows) == (preset == "experts-membrane")
    tokens, width, hidden = 17, 32, 128
    if preset == "spike-driven":  # q, k, v; k v and q (k v), heads of 16 channels; output
        assert rows["blocks.0.attn.qkv"].macs == tokens * 3 * width * width
        assert rows["blocks.0.attn.terms.ssa"].macs == 2 * tokens * width * 16
        assert rows["blocks.0.attn.proj"].macs == tokens * width * width
        assert rows["blocks.0.mlp.fc1"].macs == rows["blocks.0.mlp.fc2"].macs == tokens * width * hidden
    # All that has a cost is driven, but for what sees the image; all else is a neuron, or a constant that folds.
    for name, row in rows.items():
        if row.action == "analog" and name != "patch_embed.proj":
            assert row.macs == 0 and {call.kind for call in row.calls} == {"scale"}, name
    assert rows["patch_embed.proj"].action == "analog" and rows["patch_embed.proj"].macs > 0
    assert {name for name, row in rows.items() if planned.driven(name)} == {
        name for name, row in rows.items() if row.macs and name != "patch_embed.proj"
    }


def test_what_are_spikes_already_needs_no_neurons(vit: nn.Module) -> None:
    planned = plan(vit, RECIPES["experts-membrane"], SIZE)
    rows = {module.name: module for module in planned.modules}

    def driven(name: str) -> list[tuple[int, ...]]:
        return [call.driven for call in rows[name].calls if call.macs]

    # A perceptron's ReLU is a neuron, which the layer behind it reads; and so is the router that gates it.
    for name in ("mlp.fc2", "mlp.router", "mlp"):
        assert not any(driven(f"blocks.0.{name}")), name
    assert driven("blocks.0.mlp.fc1") == driven("blocks.0.attn.proj") == driven("head") == [(0,)]
    # The router's spikes need none, and the maps' sums over tokens do.
    assert driven("blocks.0.attn.terms.experts") == [(1,), (1,)]


def test_a_plan_tells_what_is_in_substitutes_where_membrane_neurons_may_be(vit: nn.Module) -> None:
    half = plan(vit, make_recipe(attention={"1": "ssa"}, mlp={"0": "relu"}), SIZE)
    inside = ("blocks.1.attn.qkv", "blocks.1.attn.terms.ssa", "blocks.0.mlp.fc1")
    outside = ("blocks.0.attn.qkv", "blocks.1.mlp.fc1", "patch_embed.proj", "head")
    assert all(map(half.in_substitutes, inside)) and not any(map(half.in_substitutes, outside))
    assert plan(vit, RECIPES["spike-driven"], SIZE).in_substitutes("head")  # which is behind one
    assert not plan(vit, RECIPES["faithful"], SIZE).in_substitutes("head")


def test_auto_needs_images(vit: nn.Module) -> None:
    with pytest.raises(RecipeError, match="'auto' chooses the branches on calibration images"):
        plan(vit, make_recipe(attention="auto"), SIZE)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18"])
def test_only_a_vit_has_blocks_to_replace(name: str) -> None:
    with pytest.raises(UnsupportedModuleError, match=r"in timm's VisionTransformer, got SwinTransformer|ResNet has no block"):
        plan(timm.create_model(name), RECIPES["spike-driven"], (3, 224, 224))


def test_blocks_of_another_kind_are_refused_by_name() -> None:
    model = make_vit()
    model.blocks[1].mlp = nn.Identity()
    with pytest.raises(UnsupportedModuleError, match=r"blocks\.1 is a Block of Attention and Identity"):
        plan(model, RECIPES["spike-driven"], SIZE)


def test_attention_pooling_has_no_spiking_form() -> None:
    pooled = make_vit(global_pool="map", class_token=False)
    with pytest.raises(UnsupportedModuleError, match="reads its tokens by attention pooling"):
        plan(pooled, RECIPES["spike-driven"].changed(readout="mean"), SIZE)
    assert plan(pooled, RECIPES["spike-driven"], SIZE).blocks


def test_a_spiking_network_is_not_converted_again() -> None:
    with pytest.raises(ModelError, match="is a spiking network already"):
        plan(timm.create_model("spikformer_4_384_cifar10", dim=32, depth=1, num_heads=2), RECIPES["spike-driven"], (3, 32, 32))


def test_the_command_shows_the_plan_and_what_it_costs(tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["inspect", "demo", "--recipe", "qkformer-membrane"])
    assert shown.exit_code == 0, shown.output
    row = next(line for line in shown.stdout.splitlines() if "qk-token.gate.clip" in line)
    assert "Hardtanh" in row and "IF" in row and "(is a neuron)" in row
    assert next(line for line in shown.stdout.splitlines() if "mlp.fc2" in line).split()[2:5] == [
        "linear",
        "(spikes",
        "already)",
    ]
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "M accumulates in 4 timesteps, if each neuron sent a spike in each" in shown.stdout
    recipe = tmp_path / "recipe.json"
    structure = {"attention": {"0-7": "qk-token+conv", "8-11": "ssa+conv"}, "mlp": "relu"}
    recipe.write_text(json.dumps({"structure": structure, "spikes": {"kind": "membrane"}}))
    refused = CliRunner().invoke(cli, ["inspect", "demo", "--recipe", str(recipe)])
    assert refused.exit_code == 2
    assert "names block '0-7', and the model has the blocks 0-3" in refused.stderr
    document = CliRunner().invoke(cli, ["inspect", "demo", "--recipe", "experts-membrane", "--json"])
    kinds = [(block["attention"], block["mlp"]) for block in json.loads(document.stdout)["blocks"]]
    assert kinds == [("experts+conv", "emsp")] * 2 + [("emsa+conv", "emsp")] * 2


def test_plans_need_neither_weights_nor_their_memory() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    planned = plan(model, RECIPES["spike-driven"], (3, 224, 224))
    assert len(planned.blocks) == 12


def test_parts_of_a_model_are_those_of_its_depth() -> None:
    names = [f"blocks.{index}" for index in range(7)]
    choice = {"first two thirds": "ssa", "last third": "conv", "first half": "experts"}
    assert kinds_by_block("attention", choice, names) == ["experts"] * 3 + ["ssa"] + ["conv"] * 3
    assert kinds_by_block("mlp", {"second half": "relu"}, names) == ["mlp"] * 3 + ["relu"] * 4


def test_parts_of_few_blocks_may_be_none() -> None:
    choice = {"first third": "qk-token", "last two thirds": "ssa"}
    assert kinds_by_block("attention", choice, ["blocks.0", "blocks.1"]) == ["ssa", "ssa"]


def test_hybrid_keeps_the_last_third_of_the_blocks(many_blocks: nn.Module) -> None:
    planned = plan(many_blocks, RECIPES["hybrid"], SIZE)
    kinds = ["qk-channel+ssa+conv"] * 2 + ["qk-relu+conv"] * 2
    assert [(block.attention, block.mlp) for block in planned.blocks] == [(kind, "relu") for kind in kinds] + [
        ("softmax", "mlp")
    ] * 2
    rows = {row.name: row.type for row in planned.modules}
    assert rows["blocks.3.norm1"] == "GatedNorm" and rows["blocks.4.norm1"] == rows["norm"] == "LayerNorm"


@pytest.mark.parametrize("preset", ["qkformer", "experts"])
def test_nothing_of_softmax_layernorm_and_gelu_is_left(preset: str, many_blocks: nn.Module) -> None:
    planned = plan(many_blocks, RECIPES[preset], SIZE)
    assert not {"LayerNorm", "GELU", "Attention"} & {row.type for row in planned.modules}
    functions = {function for row in planned.modules for function in row.operations}
    assert not functions & {"softmax", "gelu", "layer_norm", "scaled_dot_product_attention"}


@pytest.fixture
def many_blocks() -> nn.Module:
    return make_vit(depth=6)
