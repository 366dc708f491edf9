"""Spiking branches in ViTs that are built otherwise: without biases or head, with other norms and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import make_recipe, make_vit
from timm.layers import RmsNorm
from torch import Tensor, nn

from vit2snn.convert import RECIPES, plan, to_spiking
from vit2snn.errors import UnsupportedModuleError
from vit2snn.storage import load

PRESETS = ("qkformer-membrane", "experts-membrane")
SIZE = (3, 16, 16)


def error(snn: Any, ann: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        wanted = ann(images)
        return float((snn(images)[-1] - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("refit", ["none", "ridge"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_without_a_head_gives_features(preset: str, refit: Any, tmp_path: Path) -> None:
    images = torch.randn(48, 3, 16, 16)
    ann = make_vit(num_classes=0)
    snn = to_spiking(ann, RECIPES[preset].changed(refit=refit), images)
    logits = snn(images)
    assert logits.shape == (4, 48, 32)
    assert error(snn, ann, images) < {"none": 1.2, "ridge": 0.5}[refit]
    snn.save(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")(images), logits)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "without", [{"proj_bias": False}, {"qkv_bias": False}, {"proj_bias": False, "qkv_bias": False}], ids=str
)
def test_biases_may_be_missing(without: dict[str, Any], preset: str, images: Tensor) -> None:
    ann = make_vit(**without)
    assert error(to_spiking(ann, preset, images), ann, images) < 0.3


def test_a_head_may_have_no_bias(images: Tensor) -> None:
    ann: Any = make_vit()
    ann.head = nn.Linear(32, 7, bias=False)
    assert error(to_spiking(ann, "qkformer-membrane", images), ann, images) < 0.3
    assert ann.head.bias is None


@pytest.mark.parametrize("norm", ["layernorm", "shift-layernorm"])
def test_a_norm_without_an_offset_is_refused_where_it_would_be_kept(norm: Any, images: Tensor) -> None:
    ann = make_vit(norm_layer=RmsNorm)
    recipe = make_recipe(attention="ssa", mlp="spiking", norm=norm)
    with pytest.raises(UnsupportedModuleError, match="the model's RmsNorm has no gain and offset") as caught:
        plan(ann, recipe, SIZE)
    assert "batchnorm" in caught.value.hint
    assert error(to_spiking(ann, recipe.changed(norm="batchnorm"), images), ann, images) < 0.3


def test_a_missing_norm_is_refused_where_it_would_be_kept() -> None:
    ann: Any = make_vit()
    ann.norm = nn.Identity()
    with pytest.raises(UnsupportedModuleError, match="the model's Identity has no gain and offset"):
        plan(ann, make_recipe(attention="ssa", mlp="spiking"), SIZE)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_head_that_is_no_linear_layer_is_refused(preset: str) -> None:
    ann: Any = make_vit()
    ann.head = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 7))
    with pytest.raises(UnsupportedModuleError, match="this VisionTransformer does not end in one linear layer") as caught:
        plan(ann, RECIPES[preset], SIZE)
    assert "nn.Linear" in caught.value.hint
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", depth=2, num_classes=7)
    with pytest.raises(UnsupportedModuleError, match="this VisionTransformerDistilled does not end"):
        plan(distilled, RECIPES[preset], (3, 224, 224))
