"""Membrane neurons in ViTs that are built otherwise: without biases or head, with other norms, tokens and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import brief, make_recipe, make_vit
from timm.layers import RmsNorm
from torch import Tensor, nn

from vit2snn.convert import to_spiking
from vit2snn.measure import audit
from vit2snn.spiking import Balanced
from vit2snn.storage import load

PRESETS = ("qkformer-membrane", "experts-membrane")


@pytest.fixture
def many() -> Tensor:
    return torch.randn(32, 3, 16, 16)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fit_branches", "fitting"):
        monkeypatch.setattr(f"vit2snn.convert.{module}.STEPS", 30)


def error(snn: Any, ann: nn.Module, images: Tensor) -> float:
    """Of the logits, relative to what tells the images apart."""
    with torch.no_grad():
        wanted = ann(images)
        return float((snn(images)[-1] - wanted).norm() / (wanted - wanted.mean(0)).norm())


def multiplied(snn: Any, images: Tensor) -> list[str]:
    return [row.module for row in audit(snn, [images]).rows if not row.addition_only]


@pytest.mark.parametrize("refit", ["none", "blocks"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_without_a_head_gives_features(preset: str, refit: Any, many: Tensor, tmp_path: Path) -> None:
    ann = make_vit(num_classes=0)
    snn = to_spiking(ann, brief(preset).changed(refit=refit), many)
    logits = snn(many)
    assert logits.shape == (4, 32, 32)
    assert error(snn, ann, many) < {"none": 2.0, "blocks": 1.0}[refit]
    snn.save(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")(many), logits)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"proj_bias": False, "qkv_bias": False},
        {"init_values": 0.5, "reg_tokens": 2},
        {"class_token": False, "global_pool": "avg"},
        {"norm_layer": RmsNorm},
    ],
    ids=str,
)
def test_models_that_are_built_otherwise_are_told_apart_as_well_and_add_only(
    arguments: dict[str, Any], preset: str, many: Tensor
) -> None:
    ann = make_vit(**arguments)
    snn = to_spiking(ann, brief(preset).changed(refit="blocks"), many)
    assert error(snn, ann, many) < 0.97  # of 1 without telling any apart; there are few images and few steps
    assert multiplied(snn, many[:2]) == ["patch_embed.proj"]


@pytest.mark.parametrize("refit", ["ridge", "blocks"])
def test_a_head_without_a_bias_gets_none(refit: Any, many: Tensor) -> None:
    ann: Any = make_vit()
    ann.head = nn.Linear(32, 7, bias=False)
    snn = to_spiking(ann, brief("qkformer-membrane").changed(refit=refit), many)
    assert snn.network.head.bias is None and ann.head.bias is None  # type: ignore[union-attr]
    assert refit == "ridge" or error(snn, ann, many) < 1


@pytest.mark.parametrize("norm", ["layernorm", "static"])
def test_any_norm_may_be_kept_or_be_missing(norm: Any, many: Tensor) -> None:
    recipe = make_recipe(attention="ssa+conv", mlp="relu", norm=norm, refit="ridge", timesteps=2)
    ann: Any = make_vit(norm_layer=RmsNorm)
    kept = [m for m in to_spiking(ann, recipe, many).network.modules() if isinstance(m, RmsNorm)]
    assert len(kept) == (5 if norm == "layernorm" else 0)
    ann.norm = nn.Identity()
    assert torch.isfinite(to_spiking(ann, recipe, many)(many[:2])).all()


def test_a_head_of_several_layers_stays_what_it_is_and_is_driven_by_coded_neurons(many: Tensor) -> None:
    ann: Any = make_vit()
    ann.head = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 7))
    snn = to_spiking(ann, brief("qkformer-membrane"), many)
    assert set(snn.neurons()) >= {"head.0.neuron", "head.2.neuron"}
    assert not [m for m in snn.network.get_submodule("head").modules() if isinstance(m, Balanced)]
    assert torch.isfinite(snn(many[:2])).all()


def test_kept_blocks_between_membranes_are_coded(many: Tensor) -> None:
    ann = make_vit(depth=3)
    recipe = make_recipe(attention={"0": "qk-channel+conv", "1": "ssa"}, mlp={"0-1": "relu"}, refit="ridge", timesteps=3)
    snn = to_spiking(ann, recipe, many)
    logits = snn(many[:4], 5)
    torch.testing.assert_close(snn(many[:4], 5, chunk=2), logits, atol=1e-4, rtol=1e-4)
    assert {".".join(name.split(".")[:3]) for name in snn.neurons()} == {"blocks.2.attn", "blocks.2.mlp", "head.neuron"}
    functions = {row.function for row in audit(snn, [many[:2]]).rows if row.multiplies and row.kind == "function"}
    assert functions == {"layer_norm", "softmax", "gelu"}
