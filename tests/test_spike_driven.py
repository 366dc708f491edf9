"""Spiking branches in place of a ViT's own: what the network is then made of, what it inherits, and how it is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_recipe, make_vit
from torch import Tensor, nn

import vit2snn
from vit2snn.convert import RECIPES, Recipe, SpikingModel, fold, to_spiking
from vit2snn.errors import ArtifactError
from vit2snn.measure import diagnose, evaluate
from vit2snn.spiking.branches.emsa import shared_key
from vit2snn.tracing import record

PRESETS = ("qkformer-membrane", "experts-membrane", "spike-driven")
SPIKING = make_recipe(attention="ssa", mlp="spiking", norm="batchnorm", readout="mean", neuron="if")


def change(**fields: Any) -> Recipe:
    return SPIKING.changed(**fields)


@pytest.fixture(scope="module")
def converted() -> dict[str, SpikingModel]:
    torch.manual_seed(0)
    images = torch.randn(12, 3, 16, 16)
    return {preset: to_spiking(make_vit(), preset, images) for preset in PRESETS}


def inputs_of(network: nn.Module, *kinds: type[nn.Module]) -> dict[str, list[Tensor]]:
    """The inputs that modules of these kinds will get."""
    seen: dict[str, list[Tensor]] = {}
    for name, module in network.named_modules():
        if isinstance(module, kinds):
            module.register_forward_pre_hook(lambda m, inputs, name=name: seen.setdefault(name, []).append(inputs[0].detach()))
    return seen


@pytest.mark.parametrize("preset", PRESETS)
def test_no_layernorm_softmax_or_gelu_remains_and_spikes_feed_every_weight(preset: str, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, preset, images)
    assert not [m for m in snn.network.modules() if isinstance(m, (nn.LayerNorm, nn.GELU, nn.Softmax))]
    functions = {operation.function for operation in record(snn.network, (3, 16, 16))}
    assert functions.isdisjoint({"layer_norm", "softmax", "gelu", "scaled_dot_product_attention"})
    seen = inputs_of(snn.network, nn.Linear, nn.Conv2d)
    snn(images)
    assert len(seen) > 10
    for name, (x,) in seen.items():
        if name == "patch_embed.proj":  # sees the image
            continue
        if name == "head":  # the mean over 16 patches of binary spikes
            x = x * 16
        elif name.endswith("attn.branch.out.conv") and preset == "experts-membrane":  # the sum of 2 experts
            assert x.max() > 1
        else:
            assert set(x.unique().tolist()) <= {0.0, 1.0}, name
        torch.testing.assert_close(x, x.round())


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_logits_depend_neither_on_the_batch_nor_on_later_timesteps(
    preset: str, converted: dict[str, SpikingModel], images: Tensor
) -> None:
    snn = converted[preset].double()
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
        *(RECIPES[preset] for preset in PRESETS),
        change(attention={"*": "ssa+tim", "1": "sdsa"}, neuron="lif"),
        change(attention="qk-channel", neuron="ternary", balance="rate", rate=0.3),
        change(attention="emsa+tim", mlp="emsp", neuron="plif", norm="layernorm", readout="class-token"),
        change(neuron="integer-lif", shortcut="sew"),
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
    assert torch.equal(again(images), logits)
    assert torch.equal(again.ann(images), snn.ann(images))
    result = evaluate(again, [(images, torch.arange(12) % 7)])
    assert result.points[-1].top1 == pytest.approx(100 * float((logits[-1].argmax(1) == torch.arange(12) % 7).float().mean()))
    assert 0 < result.points[0].spikes_per_neuron < result.points[-1].spikes_per_neuron


def test_without_refitting_each_branch_keeps_the_anns_mean_and_spread(vit: nn.Module, images: Tensor) -> None:
    """Of each channel: of what the norm gives, before its gain is balanced, and of what the branch adds."""
    snn = to_spiking(vit, change(refit="none"), images)
    added: dict[str, Tensor] = {}
    for network, key in ((snn.network, "snn"), (snn.teacher.ann, "ann")):
        for part in ("attn", "mlp"):
            module = network.get_submodule(f"blocks.0.{part}")
            module.register_forward_hook(lambda m, i, output, key=f"{key}.{part}": added.update({key: output.detach()}))
    with torch.no_grad():
        snn(images)
        snn.ann(images)
    for part in ("attn", "mlp"):
        spiking, ann = (added[f"{key}.{part}"].flatten(0, -2) for key in ("snn", "ann"))
        torch.testing.assert_close(spiking.mean(0), ann.mean(0), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(spiking.std(0), ann.std(0), atol=1e-2, rtol=2e-2)
    bn = snn.network.blocks[0].attn.branch.query.project.bn  # type: ignore[union-attr,index]
    weights = snn.network.blocks[0].attn.branch.query.project.conv.weight.flatten(1)  # type: ignore[union-attr,index]
    torch.testing.assert_close(weights, vit.blocks[0].attn.qkv.weight[:32])  # type: ignore[union-attr,index]
    with torch.no_grad():
        seen = inputs_of(snn.network, nn.BatchNorm2d)
        snn(images)
    currents = seen["blocks.0.attn.branch.query.project.bn"][0]
    torch.testing.assert_close(bn.running_mean, currents.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bn.running_var, currents.var((0, 2, 3), correction=0), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_each_step_of_refitting_leaves_less_error() -> None:
    vit, many = make_vit(), torch.randn(64, 3, 16, 16)
    error = {
        refit: max(diagnose(to_spiking(vit, change(refit=refit), many), many), key=lambda row: row.name).relative_error[-1]
        for refit in ("none", "ridge", "blocks")
    }
    assert error["ridge"] < 0.9 * error["none"]
    assert error["blocks"] < 0.95 * error["ridge"]


@pytest.mark.slow
def test_refitting_alone_recovers_much_of_the_accuracy(demo_sample: tuple[Tensor, Tensor, Tensor]) -> None:
    from vit2snn.convert import load_model

    calibration, images, labels = demo_sample
    result = evaluate(to_spiking(load_model("demo"), "spike-driven", calibration), [(images, labels)])
    assert result.points[-1].top1 > 40  # of ten classes, from 64 images without labels
    assert result.modules[0].name.startswith("blocks.")


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_folding_leaves_no_normalisation_and_the_same_logits(
    preset: str, converted: dict[str, SpikingModel], images: Tensor, tmp_path: Path
) -> None:
    snn = converted[preset]
    folded = fold(snn)
    assert not [m for m in folded.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m for m in snn.network.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(folded.double()(images.double()), snn.double()(images.double()))
    snn.float()
    folded.float().save(tmp_path / "out")
    again = vit2snn.load(tmp_path / "out")
    assert again.folded
    assert torch.equal(again(images), folded(images))


def test_blocks_may_keep_their_attention_beside_spiking_ones(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, change(attention={"1": "ssa"}, readout="model"), images)
    assert {name.split(".")[1] for name in snn.neurons()} == {"0"}
    assert not snn.plan.coded("blocks.0.mlp")
    assert snn.plan.coded("blocks.0.attn.qkv")
    assert all(neuron.threshold.numel() for neuron in snn.neurons().values())
    assert torch.isfinite(snn(images)).all()


def test_layer_scale_and_registers_are_inherited(images: Tensor) -> None:
    vit = make_vit(init_values=0.5, reg_tokens=2, global_pool="avg", class_token=True)
    snn = to_spiking(vit, RECIPES["experts-membrane"], images)
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
    assert "blocks.0.attn.branch.router.project.conv.weight" in new
    assert "blocks.0.attn.branch.interaction.conv.weight" in new
    assert "blocks.0.mlp.branch.expand.project.conv.weight" not in new
    assert len(new) < len(list(snn.network.named_parameters())) / 2


def test_a_missing_teacher_is_told(vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    to_spiking(vit, SPIKING, images).save(tmp_path / "out")
    (tmp_path / "out" / "ann.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"is damaged: .*ann\.safetensors"):
        vit2snn.load(tmp_path / "out")
