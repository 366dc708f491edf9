"""Lines in place of softmax, activation functions and norms of families other than the plain ViT."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from test_families import FAMILIES, relative
from torch import Tensor, nn

from vit2snn import to_spiking
from vit2snn.convert import Coded, Recipe, SpikingModel, Structure, lines
from vit2snn.convert.anatomy import anatomy

SWIN, EVA = "windows with relative bias", "rotary embedding and SwiGLU"
LINES = Recipe(1, Structure("qk-relu", "relu", norm="gated", refit="ridge"), Coded(levels=0))
FOUND = {  # blocks and attentions
    SWIN: (3, 3),
    EVA: (2, 2),
    "gated positional attention": (3, 3),
    "pooled queries": (10, 10),
    "linear attention": (13, 0),
    "locally grouped attention": (2, 2),
    "decomposed relative position": (2, 2),
    "cross-covariance": (5, 4),
    "class attention and talking heads": (4, 4),
    "mixing of tokens": (8, 0),
    "convolution": (0, 0),
}
OTHERS = {
    "class tokens across": ("crossvit_tiny_240", {"depth": ((1, 1, 0),)}, 240),
    "tokens in tokens": ("tnt_s_patch16_224", {"depth": 1}, 224),
    "grid and block": ("maxvit_pico_rw_256", {"img_size": 64}, 64),
    "outlook": ("volo_d1_224", {"img_size": 64}, 64),
    "pooled keys": ("pvt_v2_b0", {}, 64),
}


def made(family: str) -> tuple[nn.Module, Tensor]:
    """A small model of a family with random weights, and images."""
    name, arguments, size = (FAMILIES | OTHERS)[family]  # type: ignore[operator]
    model = timm.create_model(name, num_classes=10, **arguments).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5
    return model, torch.randn(8, 3, size, size, generator=generator)


def lost(snn: SpikingModel, images: Tensor) -> float:
    with torch.no_grad():
        return relative(snn(images)[-1], snn.ann(images))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_is_made_of_is_found(family: str) -> None:
    model, images = made(family)
    found = anatomy(model, tuple(images.shape[1:]))
    roles = Counter(function.role for block in found.blocks for function in block.functions)
    assert (len(found.blocks), roles["attention"]) == FOUND[family] and not found.left
    kinds = Counter(type(module).__name__ for module in model.modules())
    assert roles["norm"] + len(found.loose) == kinds["LayerNorm"] + kinds["LayerNorm2d"]
    assert roles["mlp"] == kinds["GELU"] + kinds["SiLU"] + kinds["Hardswish"]


@pytest.mark.slow
@pytest.mark.parametrize("family", [*(f for f in FAMILIES if FOUND[f][1]), *OTHERS])
def test_a_softmax_in_the_place_of_each_softmax_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So attention is found where it is computed, and what surrounds it is left to the family's own code."""

    class Exact(nn.Softmax):
        def __init__(self, heads: int, prefix: int, dim: int) -> None:
            super().__init__(dim)

        def forward(self, input: Tensor, *others: Any, **more: Any) -> Tensor:
            seen.append(tuple(input.shape))
            return super().forward(input)

    seen: list[tuple[int, ...]] = []
    model, images = made(family)
    monkeypatch.setattr(lines, "RectifiedSoftmax", Exact)
    snn = to_spiking(model, Recipe(1, Structure("qk-relu", refit="none"), Coded(levels=0)), images)
    attentions = [block for block in snn.plan.blocks if block.attention == "qk-relu"]
    assert lost(snn, images) < 1e-5
    assert len(seen) >= len(attentions) > 0
    if family == "outlook":
        assert snn.plan.left == tuple(f"network.0.{block}.attn" for block in range(4))


@pytest.mark.slow
@pytest.mark.parametrize("family", [*(f for f in FAMILIES if FOUND[f][0]), *OTHERS])
def test_lines_take_the_place_of_every_function_in_every_family(family: str) -> None:
    model, images = made(family)
    snn = to_spiking(model, LINES, images)
    kinds = Counter(type(module).__name__.removeprefix("Spiking") for module in snn.network.modules())
    blocks = snn.plan.blocks
    assert kinds["RectifiedSoftmax"] >= sum(block.attention == "qk-relu" for block in blocks)
    assert not {"GELU", "SiLU", "LayerNorm", "LayerNorm2d", "RmsNorm", "Softmax"} & kinds.keys()
    called = {call.function for module in snn.plan.modules for call in module.calls if module.name not in snn.plan.left}
    assert not {"softmax", "gelu", "silu", "layer_norm", "rms_norm", "scaled_dot_product_attention"} & called
    assert lost(snn, images) < 1
    torch.testing.assert_close(snn.ann(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("family", [SWIN, EVA, "pooled keys"])
def test_each_stage_of_a_fit_does_better(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fit_branches", "fitting"):
        monkeypatch.setattr(f"vit2snn.convert.{module}.STEPS", 30)
    model, images = made(family)
    images = images.repeat(4, 1, 1, 1) + torch.randn(32, *images.shape[1:])
    found = {refit: lost(to_spiking(model, LINES.changed(refit=refit), images), images) for refit in ("none", "blocks")}
    assert found["none"] > 1.5 * found["blocks"], found
