"""Substitutes fitted to their ANN: each stage does better, and a seed gives the same, also if the fit was interrupted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import make_vit
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.nn.functional import kl_div

from vit2snn import load, to_spiking
from vit2snn.convert import Coded, Fitting, Membrane, Progress, Recipe, SpikingModel, Structure, load_model
from vit2snn.convert.fit_branches import RATE, unless_worse
from vit2snn.convert.structures import Refit
from vit2snn.convert.views import random_views
from vit2snn.errors import ArtifactError, RecipeError, UnsupportedModuleError
from vit2snn.finetune import open_folder
from vit2snn.spiking import analog, simulate
from vit2snn.spiking.substitutes import GatedNorm

PLAN: dict[str, Any] = {"attention": {"0": "qk-channel+conv", "1": "experts+ssa"}, "mlp": "relu", "norm": "gated"}
MEMBRANE: dict[str, Any] = {"spikes": Membrane(), "timesteps": 2, "norm": "static"}
BRANCHES = ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
THROUGH_SPIKES = [f"{name}, spikes" for name in (*BRANCHES, "head")]


def set_steps(patch: pytest.MonkeyPatch, count: int) -> None:
    for module in ("fit_branches", "fitting"):
        patch.setattr(f"vit2snn.convert.{module}.STEPS", count)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    set_steps(monkeypatch, 30)


@pytest.fixture
def many() -> Tensor:
    return torch.randn(64, 3, 16, 16)


def convert(model: nn.Module, images: Any, seed: int = 0, fitting: Fitting | None = None, **fields: Any) -> SpikingModel:
    spikes, timesteps = fields.pop("spikes", Coded(levels=0)), fields.pop("timesteps", 1)
    structure = Structure(**(PLAN | {"refit": "network", "passes": 4} | fields))
    return to_spiking(model, Recipe(structure=structure, spikes=spikes, timesteps=timesteps), images, seed, fitting)


def lost(snn: SpikingModel, images: Tensor) -> float:
    """Of the ANN's logits, relative."""
    ann = snn.ann(images)
    with torch.no_grad():
        return float((snn(images)[-1] - ann).norm() / (ann - ann.mean(0)).norm())


def divergence(snn: SpikingModel, images: Tensor) -> float:
    """Of its class probabilities from the ANN's."""
    with torch.no_grad():
        found, wanted = (logits.log_softmax(-1) for logits in (snn(images)[-1], snn.ann(images)))
    return float(kl_div(found, wanted, log_target=True, reduction="batchmean"))


def weights(snn: SpikingModel) -> list[Tensor]:
    return list(snn.network.state_dict().values())


@pytest.mark.slow
def test_each_stage_does_better_than_the_one_before(demo_sample: tuple[Tensor, Tensor, Tensor]) -> None:
    given = demo_sample[0]
    demo, plan = load_model("demo"), {"0-1": "qk-channel+conv", "2-3": "ssa+conv"}
    stages = {refit: convert(demo, given, attention=plan, refit=refit, passes=40) for refit in get_args(Refit)}
    found = {refit: divergence(snn, given) for refit, snn in stages.items()}
    assert found["none"] > found["ridge"] and found["none"] > found["blocks"] > found["network"], found


def test_nothing_of_the_ann_that_was_replaced_is_left_and_the_ann_is_the_teacher(vit: nn.Module, many: Tensor) -> None:
    snn = convert(vit, many, refit="ridge")
    kinds = {type(module) for module in snn.network.modules()}
    assert not kinds & {nn.LayerNorm, nn.GELU} and any(issubclass(kind, GatedNorm) for kind in kinds)
    assert not any("softmax" in row.operations or "scaled_dot_product_attention" in row.operations for row in snn.plan.modules)
    torch.testing.assert_close(snn.ann(many), vit(many))
    assert snn.teacher is not None and "LayerNorm" in str(snn.original())
    assert [block.attention for block in snn.plan.blocks] == ["qk-channel+conv", "experts+ssa"]


@pytest.mark.slow
def test_spikes_approach_the_substitute(vit: nn.Module, many: Tensor) -> None:
    recipe = Recipe(structure=Structure(**PLAN, refit="ridge"), spikes=Coded(), timesteps=6)
    snn = to_spiking(vit, recipe, many)
    with torch.no_grad(), analog():
        exact = simulate(snn.network, many, 1)[0]
    with torch.no_grad():
        errors = [float((logits - exact).norm() / exact.norm()) for logits in snn(many)]
    assert errors[5] < 0.01 < errors[0]


def test_blocks_that_are_kept_stay_as_they_are_until_the_whole_is_fitted(vit: Any, many: Tensor) -> None:
    snn = convert(vit, many, attention={"0": "ssa"}, mlp={"0": "relu"}, refit="blocks")
    kept = snn.network.blocks[1]
    assert isinstance(kept.norm1, nn.LayerNorm) and isinstance(snn.network.norm, nn.LayerNorm)
    torch.testing.assert_close(kept.mlp.fc1.weight, vit.blocks[1].mlp.fc1.weight)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, MEMBRANE], ids=["coded", "membrane"])
def test_the_same_seed_gives_the_same_and_another_one_another(
    fields: dict[str, Any], vit: nn.Module, many: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_steps(monkeypatch, 4)
    one, same, other = (convert(vit, many, seed, **fields) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(same), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def interrupted_and_resumed(
    stage: str, model: nn.Module, images: Tensor, folder: Path, **fields: Any
) -> tuple[SpikingModel, list[Progress]]:
    """A fit that was interrupted at the fifth update of a stage, and what the resumed one reported."""
    seen: list[str] = []

    def interrupt(progress: Progress) -> None:
        seen.append(progress.stage)
        if seen.count(stage) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, images, fitting=Fitting(folder=folder, report=interrupt), **fields)
    later: list[Progress] = []
    return convert(model, images, fitting=Fitting(folder=folder, resume=True, report=later.append), **fields), later


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["blocks.1.attn", "network"])
def test_an_interrupted_fit_ends_as_one_that_was_not(
    stage: str, vit: nn.Module, many: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit2snn.convert.fitting.EVERY", 3)
    resumed, later = interrupted_and_resumed(stage, vit, many, open_folder(tmp_path / "out"))
    assert later[0].stage == stage and len(later) < 4 * 30 + 16
    whole = convert(vit, many)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def sample() -> Tensor:
    """The same images each time."""
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(5))


FEW = 8


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[SpikingModel, list[Progress]]:
    """What a fit to `sample` in `FEW` steps gives that goes on through spikes, and its progress."""
    found: list[Progress] = []
    torch.manual_seed(0)  # as each test has it, for the biases of the ANN
    with pytest.MonkeyPatch.context() as patch:
        set_steps(patch, FEW)
        return convert(make_vit(), sample(), fitting=Fitting(report=found.append), **MEMBRANE), found


@pytest.mark.parametrize("stage", ["network", THROUGH_SPIKES[0], THROUGH_SPIKES[3], THROUGH_SPIKES[-1]])
def test_a_fit_interrupted_with_its_spikes_to_come_or_half_fitted_ends_as_one_that_was_not(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[SpikingModel, list[Progress]]
) -> None:
    monkeypatch.setattr("vit2snn.convert.fitting.EVERY", 3)
    set_steps(monkeypatch, FEW)
    resumed, later = interrupted_and_resumed(stage, make_vit(), sample(), open_folder(tmp_path / "out"), **MEMBRANE)
    expected, progress = uninterrupted
    assert later[0].stage == stage
    stages = list(dict.fromkeys(p.stage for p in progress))
    assert list(dict.fromkeys(p.stage for p in later)) == stages[stages.index(stage) :]
    assert later == progress[-len(later) :]  # it has not to do more, and says the same of itself
    assert all(torch.equal(a, b) for a, b in zip(weights(expected), weights(resumed), strict=True))


def test_a_fit_is_not_resumed_with_other_images_or_another_plan(vit: nn.Module, many: Tensor, tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "out")
    convert(vit, many, refit="blocks", fitting=Fitting(folder=folder))
    with pytest.raises(ArtifactError, match="was begun with images"):
        convert(vit, many + 1, refit="blocks", fitting=Fitting(folder=folder, resume=True))
    with pytest.raises(ArtifactError, match="was begun with structure"):
        convert(vit, many, refit="blocks", mlp="emsp", fitting=Fitting(folder=folder, resume=True))


def test_a_fit_through_spikes_is_not_resumed_with_other_neurons_or_timesteps(
    vit: nn.Module, many: Tensor, tmp_path: Path
) -> None:
    folder, fields = open_folder(tmp_path / "out"), MEMBRANE | {"refit": "ridge"}
    convert(vit, many, fitting=Fitting(folder=folder), **fields)
    for other, name in (
        ({"spikes": Membrane("plif")}, "spikes"),
        ({"spikes": Membrane(kept=dataclasses.replace(Membrane().kept, levels=2))}, "spikes"),
        ({"timesteps": 3}, "timesteps"),
    ):
        with pytest.raises(ArtifactError, match=f"was begun with {name}"):
            convert(vit, many, fitting=Fitting(folder=folder, resume=True), **(fields | other))
    convert(vit, many, fitting=Fitting(folder=folder, resume=True), **fields)


def test_progress_rises_to_one(vit: nn.Module, many: Tensor) -> None:
    found: list[Progress] = []
    convert(vit, many, fitting=Fitting(report=found.append))
    shares = [progress.done for progress in found]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert list(dict.fromkeys(progress.stage for progress in found)) == [*BRANCHES, "network"]


def test_progress_rises_to_one_through_the_spikes(
    vit: nn.Module, many: Tensor, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[SpikingModel, list[Progress]]
) -> None:
    set_steps(monkeypatch, FEW)
    blocks: list[Progress] = []
    convert(vit, many, fitting=Fitting(report=blocks.append), **(MEMBRANE | {"refit": "blocks"}))
    for found, whole in ((blocks, []), (uninterrupted[1], ["network"])):
        shares = [progress.done for progress in found]
        assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == pytest.approx(1)
        assert list(dict.fromkeys(progress.stage for progress in found)) == [*BRANCHES, *whole, *THROUGH_SPIKES]
    last = next(progress.done for progress in reversed(blocks) if progress.stage == BRANCHES[-1])
    assert last == pytest.approx(1 / 3)  # an update through spikes is as much work as one in float in each of the 2 timesteps


def test_training_branches_through_their_spikes_does_better_than_balancing_alone(
    monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[SpikingModel, list[Progress]]
) -> None:
    set_steps(monkeypatch, FEW)
    monkeypatch.setattr("vit2snn.convert.fit_spikes._train", lambda *arguments: None)
    balanced = convert(make_vit(), sample(), **MEMBRANE)
    assert divergence(uninterrupted[0], sample()) < 0.8 * divergence(balanced, sample())


def test_few_images_are_fitted_to_all_the_same(vit: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    set_steps(monkeypatch, FEW)
    for fields in ({}, MEMBRANE, {"refit": "ridge"}, {"refit": "ridge"} | MEMBRANE):
        assert convert(vit, images[:2], **fields)(images).isfinite().all()


def test_a_loader_that_shuffles_and_half_precision_and_a_plan_of_averages(many: Tensor) -> None:
    model = make_vit(global_pool="avg").half()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(many, torch.zeros(64)), 16, shuffle=True)
    snn = convert(model, loader, passes=1)
    assert {parameter.dtype for parameter in snn.network.parameters()} == {torch.float16}
    assert lost(snn.float(), many) < 1.5 and isinstance(snn.network.fc_norm, GatedNorm)


def test_more_images_than_are_held_are_seen_by_the_whole_network(
    vit: nn.Module, many: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit2snn.convert.fitting.HELD", 32)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(many), 16)
    found: list[Progress] = []
    snn = convert(vit, loader, passes=2, fitting=Fitting(report=found.append))
    assert [progress.stage for progress in found].count("network") == 8
    assert len(snn.calibrated_on) == 64


def test_a_layer_scale_goes_into_the_map_that_it_scales(many: Tensor) -> None:
    model = make_vit(init_values=0.1)
    for module in model.modules():
        if isinstance(module, LayerScale):
            module.gamma.data.uniform_(0.5, 1.5)
    snn = convert(model, many, refit="ridge")
    assert not any(isinstance(module, LayerScale) for module in snn.network.modules())
    assert lost(snn, many) < 1


def test_it_is_saved_and_loaded_and_tuned(vit: nn.Module, many: Tensor, tmp_path: Path) -> None:
    from vit2snn.finetune import Distillation, Settings, train

    snn = convert(make_vit(), many, mlp="emsp", refit="ridge")
    snn.save(tmp_path / "out")
    again = load(tmp_path / "out")
    assert torch.equal(again(many), snn(many)) and torch.equal(again.ann(many), snn.ann(many))
    before, batches = lost(again, many), [(many, torch.zeros(64, dtype=torch.int64))]
    assert again.is_new("blocks.0.norm1.weight") and again.is_new("blocks.1.attn.terms.experts.router.weight")
    assert not again.is_new("blocks.1.attn.terms.experts.maps") and not again.is_new("blocks.0.attn.qkv.weight")
    train(again, batches, Settings(max_steps=20, lr=1e-3), objective=Distillation({"soft": 1.0}, again.original()))
    assert lost(again, many) < before


def test_plans_that_leave_the_class_token_blind_are_refused(vit: nn.Module, many: Tensor) -> None:
    with pytest.raises(RecipeError, match="no block of this plan mixes all tokens: attention of the kind conv"):
        convert(vit, many, attention="conv")
    with pytest.raises(UnsupportedModuleError, match="Sequential has no block"):
        convert(nn.Sequential(nn.Flatten(), nn.Linear(768, 7)), many)


def test_views_are_parts_of_their_image_and_sometimes_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    across = torch.linspace(0, 1, 32).expand(400, 1, 32, 32)
    monkeypatch.setattr("vit2snn.convert.views.BLENDED", 0.0)
    views = random_views(across)
    assert views.shape == across.shape and float(views.min()) >= 0 and float(views.max()) <= 1
    slopes = views[:, 0, :, -1] - views[:, 0, :, 0]
    mirrored = (slopes.mean(1) < 0).float().mean()
    assert 0.4 < float(mirrored) < 0.6
    assert 0.4 < float(slopes.abs().mean(1).min()) < 0.6  # the narrowest part


def test_half_of_the_views_are_blends_of_two() -> None:
    plain = torch.arange(400.0).reshape(-1, 1, 1, 1).expand(400, 1, 8, 8)
    shades = random_views(plain)[:, 0, 0, 0]
    own, rounding = torch.arange(400.0), 1e-3
    assert 0.4 < float(((shades - own).abs() < rounding).float().mean()) < 0.6
    before = own.roll(1)
    assert (shades >= torch.minimum(own, before) - rounding).all() and (shades <= torch.maximum(own, before) + rounding).all()


@pytest.mark.parametrize(("gain", "kept"), [(0.5, 0.5), (4.0, 1.0), (100.0, 0.0)])
def test_a_fit_that_leaves_more_is_done_at_a_lower_rate_or_not_at_all(
    gain: float, kept: float, caplog: pytest.LogCaptureFixture
) -> None:
    module = nn.Linear(1, 1, bias=False).requires_grad_(False)
    module.weight.zero_()

    def left(index: Tensor) -> Tensor:
        return (module(torch.ones(len(index), 1)) - 1).square().mean()

    def fit(rate: float) -> None:
        module.weight.add_(gain * rate / RATE)

    unless_worse(module, "blocks.3", left, 100, fit)
    assert module.weight.item() == pytest.approx(kept)
    assert ("blocks.3 is left as it started" in caplog.text) == (not kept)


def test_at_a_rate_that_is_far_too_high_branches_stay_as_they_started(
    vit: nn.Module, many: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started = convert(vit, many, refit="none")
    monkeypatch.setattr("vit2snn.convert.fit_branches.RATE", 1e6)
    fitted = convert(vit, many, refit="blocks")
    assert all(f"{name} is left as it started" in caplog.text for name in BRANCHES)
    with torch.no_grad():
        assert torch.equal(fitted(many), started(many))
