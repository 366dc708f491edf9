"""Converted networks as backbones: features at every timestep, as timm gives them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import brief, make_vit
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from vit2snn.convert import SpikingModel, to_spiking
from vit2snn.errors import ModelError
from vit2snn.spiking import analog


def converted(recipe: str = "faithful", timesteps: int = 8, **arguments: Any) -> tuple[Any, SpikingModel]:
    ann = make_vit(**(arguments or {"num_classes": 0, "global_pool": ""}))
    return ann, to_spiking(ann, brief(recipe).changed(timesteps=timesteps), torch.randn(32, 3, 16, 16))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
def test_features_approach_the_anns_at_every_block() -> None:
    ann, snn = converted()
    x = torch.randn(3, 3, 16, 16)
    wanted, expected = ann.forward_features(x), ann.forward_intermediates(x, intermediates_only=True)
    features = snn.forward_features(x)
    assert features.shape == (8, *wanted.shape)
    assert error(features[-1], wanted) < 0.02 < error(features[0], wanted)
    found = snn.intermediates(x)
    assert [len(part) for part in found] == [8, 8]
    for part, map_ in zip(found, expected, strict=True):
        assert part.shape[1:] == map_.shape == (3, 32, 4, 4)
        assert error(part[-1], map_) < 0.02 < error(part[0], map_)
    with analog():
        assert error(snn.forward_features(x, 1)[0], wanted) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["faithful", "qkformer-membrane", "ternary-synchronous"])
def test_features_depend_on_no_chunk_and_a_run_is_the_beginning_of_a_longer_one(recipe: str) -> None:
    _, snn = converted(recipe, 3)
    x = torch.randn(2, 3, 16, 16)
    whole = snn.forward_features(x, 4)
    assert torch.allclose(snn.forward_features(x, 4, chunk=1), whole, atol=1e-5)
    assert torch.allclose(snn.forward_features(x, 2), whole[:2], atol=1e-5)
    parts = zip(snn.intermediates(x, timesteps=4), snn.intermediates(x, timesteps=4, chunk=3), strict=True)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in parts)


@torch.no_grad()
def test_timm_takes_it_for_a_backbone() -> None:
    ann, snn = converted()
    x = torch.randn(2, 3, 16, 16)
    wanted = FeatureGetterNet(ann, [1], prune=False, norm=True)(x)
    backbone = FeatureGetterNet(snn, [1], prune=False, norm=True)
    assert backbone.feature_info.channels() == [32]
    (found,) = backbone(x)
    assert error(found, wanted[0]) < 0.02
    last, (first, _) = snn.forward_intermediates(x, timesteps=2)
    assert torch.equal(last, snn.forward_features(x, 2)[-1])
    assert torch.equal(first, snn.intermediates(x, [0], 2, stop_early=True)[0][-1])
    tokens = snn.forward_intermediates(x, 1, output_fmt="NLC", intermediates_only=True)
    assert [t.shape for t in tokens] == [(2, 16, 32)]


@torch.no_grad()
def test_tokens_that_a_classifier_does_not_read_are_no_features() -> None:
    _, snn = converted(num_classes=7)
    x = torch.randn(1, 3, 16, 16)
    for call in (snn.forward_features, snn.intermediates):
        with pytest.raises(ModelError, match=r"'blocks\.1.* never fire") as refused:
            call(x)
        assert "reset_classifier(0, global_pool='')" in str(refused.value.hint)
    assert len(snn.intermediates(x, [0])) == 1  # they speak there


def test_what_has_no_features_is_named() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    snn = to_spiking(plain, "faithful", torch.randn(32, 3, 2, 2))
    for call in (snn.forward_features, snn.intermediates):
        with pytest.raises(ModelError, match="a Sequential, which has no forward_"):
            call(torch.randn(1, 3, 2, 2))
    _, snn = converted("qkformer", 2)
    with pytest.raises(ModelError, match="once in a timestep"):
        snn.intermediates(torch.randn(1, 3, 16, 16), norm=True)
