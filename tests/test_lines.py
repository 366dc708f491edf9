"""Lines in place of softmax, activation functions and norms of families other than the plain ViT."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import brief
from test_families import FAMILIES, relative
from torch import Tensor, nn

from vit2snn import load, to_spiking
from vit2snn.convert import RECIPES, Coded, Recipe, SpikingModel, Structure, lines, plan
from vit2snn.convert.anatomy import anatomy
from vit2snn.errors import RecipeError, UnsupportedModuleError
from vit2snn.spiking.substitutes import RectifiedSoftmax
from vit2snn.tracing import replace

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
    "keys over tokens": ("coat_tiny", {"img_size": 64, "serial_depths": (1, 1, 1, 1), "parallel_depth": 1}, 64),
    "a score for each token": ("mobilevitv2_050", {}, 64),
    "mixed states": ("efficientvim_m1", {}, 64),
    "scaled residuals and squared ReLU": ("caformer_s18", {}, 64),
    "shortcuts that are convolutions": ("botnet26t_256", {"img_size": 64}, 64),
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
    model, images = model.double(), images.double()  # random networks may enlarge what is rounded
    snn = to_spiking(model, Recipe(1, Structure("qk-relu", refit="none"), Coded(levels=0)), images)
    attentions = [block for block in snn.plan.blocks if block.attention == "qk-relu"]
    assert lost(snn, images) < 1e-10
    assert len(seen) >= len(attentions) > 0
    assert not snn.plan.left


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        *(f for f in FAMILIES if 0 < FOUND[f][0] < 10),
        "class tokens across",
        "tokens in tokens",
        "pooled keys",
        "a score for each token",
    ],
)
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
    monkeypatch.setattr("vit2snn.convert.fit_parts.STARTED_ON", 24)  # of 32 images
    model, images = made(family)
    images = images.repeat(4, 1, 1, 1) + torch.randn(32, *images.shape[1:])
    found = {refit: lost(to_spiking(model, LINES.changed(refit=refit), images), images) for refit in ("none", "blocks")}
    assert found["none"] > 1.5 * found["blocks"], found


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["faithful", "qkformer"])
@pytest.mark.parametrize("family", [SWIN, EVA, "decomposed relative position"])
@torch.no_grad()
def test_it_is_saved_and_loaded_and_computes_the_same(family: str, recipe: str, tmp_path: Path) -> None:
    """Swin's windows are shifted, so that it has masks, whose shapes a file tells; Segment Anything pads its own."""
    model, images = made(family)
    snn = to_spiking(model, brief(recipe).changed(timesteps=2), images)
    snn.save(tmp_path / "snn")
    again = load(tmp_path / "snn")
    assert torch.equal(again(images), snn(images)) and again.plan == snn.plan
    if family == SWIN and recipe == "qkformer":
        assert [part.shut.shape for part in again.modules() if isinstance(part, RectifiedSoftmax)] == [
            (0,),
            (4, 3, 49, 49),
            (0,),
        ]


@pytest.mark.slow
def test_an_image_is_its_own_and_time_is_its_own(tmp_path: Path) -> None:
    for family in (SWIN, EVA, "cross-covariance"):
        model, images = made(family)
        snn = to_spiking(model, brief("qkformer").changed(timesteps=3), images).double()
        alone = snn(images[:1].double())
        torch.testing.assert_close(snn(images.double())[:, :1], alone)
        torch.testing.assert_close(snn(images[:1].double(), 2), alone[:2])
        assert snn.half()(images.half()).isfinite().all()


@torch.no_grad()
def test_masks_count_for_nothing_whatever_their_scores() -> None:
    scores, mask = torch.randn(6, 2, 5, 4), torch.tensor([[False, True, False, False], [False, False, True, True]])
    made = RectifiedSoftmax(2)
    full = scores.masked_fill(mask.repeat(3, 1)[:, None, None], -100.0)  # of 3 images with 2 windows each
    made.start(full, 3)
    found = made(full)
    assert made.shut.shape == (2, 2, 5, 4) and not found[full == -100].any()
    torch.testing.assert_close(found, made(full.masked_fill(full == -100, float("-inf"))))
    few = RectifiedSoftmax(2)
    few.load_state_dict({name: value for name, value in made.state_dict().items() if name != "shut"}, strict=False)
    torch.testing.assert_close(found[::2][..., [0, 2, 3]], few(full[::2][..., [0, 2, 3]]))
    exact = full.softmax(-1)
    assert float((found - exact).norm() / exact.norm()) < 0.3
    with pytest.raises(ValueError, match=r"the mask has shape \[2, 2, 5, 4\], and the scores \[3, 2, 5, 4\]"):
        made.check_mask(full[:3])


def test_keys_lie_along_any_axis() -> None:
    scores = torch.randn(8, 3, 5, 7)
    last, first = RectifiedSoftmax(3), RectifiedSoftmax(3, dim=-2)
    last.start(scores, 8)
    first.start(scores.transpose(-2, -1), 8)
    torch.testing.assert_close(first(scores.transpose(-2, -1)), last(scores).transpose(-2, -1))


def test_what_lines_cannot_do_is_refused_with_the_reason() -> None:
    model, images = made(SWIN)
    size, why = tuple(images.shape[1:]), "whole branches are exchanged in timm's VisionTransformer, got SwinTransformer"
    for recipe, what in {
        "spike-driven": "membrane neurons need", "experts": "experts need", "shift": "shift-only functions by block need",
    }.items():  # fmt: skip
        with pytest.raises(UnsupportedModuleError, match=f"{what} a plain ViT: {why}"):
            plan(model, RECIPES[recipe], size)
    with pytest.raises(UnsupportedModuleError, match="the readout 'mean' needs a plain ViT"):
        plan(model, RECIPES["qkformer"].changed(readout="mean"), size)
    with pytest.raises(UnsupportedModuleError, match=why):
        to_spiking(model, RECIPES["qkformer"].changed(attention="auto"), images)
    mixer, others = made("mixing of tokens")
    with pytest.raises(UnsupportedModuleError, match="nothing in MlpMixer that it would replace"):
        plan(mixer, RECIPES["qkformer"].changed(mlp="mlp"), tuple(others.shape[1:]))
    with pytest.raises(RecipeError, match=r"names block '7', and the model has the blocks 0-2"):
        plan(model, RECIPES["qkformer"].changed(attention={"7": "qk-relu"}), size)


def test_blocks_are_chosen_one_by_one_and_norms_go_with_the_branch_behind_them() -> None:
    model, images = made(SWIN)
    chosen = LINES.changed(attention={"0": "qk-channel+conv"}, mlp={"1-2": "relu"})
    found = plan(model, chosen, tuple(images.shape[1:]))
    assert [(block.attention, block.mlp) for block in found.blocks] == [
        ("qk-relu", "mlp"),
        ("softmax", "relu"),
        ("softmax", "relu"),
    ]
    gated = {module.name for module in found.modules if module.type == "GatedNorm"}
    assert gated == {
        "patch_embed.norm", "layers.0.blocks.0.norm1", "layers.0.blocks.1.norm2", "layers.1.blocks.0.norm2",
        "layers.1.downsample.norm", "norm",
    }  # fmt: skip


class Twice(nn.Module):
    """Two calls of one function, the second of which is replaced."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1) + (2 * x).softmax(-1)


def test_a_call_is_replaced_by_its_number_also_in_copies() -> None:
    module, x = Twice(), torch.randn(3, 4)
    module.add_module("second", lines.Rectify())
    replace(module, "softmax", 1, "second")
    wanted = x.softmax(-1) + (2 * x).relu()
    for each in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(each(x), wanted)
