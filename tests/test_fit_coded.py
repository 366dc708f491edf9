"""Weights that are trained through the spikes of coded neurons."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from click.testing import CliRunner
from conftest import make_recipe, make_vit
from test_shards import launch
from torch import Tensor, nn

import vit2snn
from vit2snn.cli import cli
from vit2snn.convert import RECIPES, Coded, Fitting, Progress, Recipe, SpikingModel, load_model, to_spiking
from vit2snn.convert.fit_coded import Likeness, endings_of
from vit2snn.errors import ArtifactError, RecipeError
from vit2snn.measure import evaluate
from vit2snn.spiking import Run, neurons, repeating, running

FEW = RECIPES["binary"].changed(timesteps=2, refit_passes=2)
FAMILIES = {
    "windows": ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (1, 1), "embed_dim": 32, "num_heads": (1, 2)}, 56),
    "rotary": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}, 56),
    "class attention": ("cait_xxs24_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}, 32),
}


def ended(snn: SpikingModel, x: Tensor) -> Tensor:
    """The output of one pass in which neurons repeat what they ended with."""
    with running(Run(batch=len(x))), repeating(endings_of(snn.network, x, snn.recipe)):
        output: Tensor = snn.network(x)
        return output


def error(snn: SpikingModel, x: Tensor) -> float:
    with torch.no_grad():
        readout, ann = snn(x)[-1], snn.ann(x)
    return float((readout - ann).norm() / (ann - ann.mean(0)).norm())


# The end of a run


@pytest.mark.parametrize(
    "name", ["faithful", "frugal", "ternary", "binary", "ternary-stepwise", "ternary-synchronous", "binary-rate"]
)
def test_the_end_of_a_run_is_repeated_in_one_pass(name: str, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, RECIPES[name].changed(timesteps=3), images)
    with torch.no_grad():
        expected = snn(images)[-1]
        torch.testing.assert_close(ended(snn, images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", ["binary", "ternary-stepwise"])
def test_of_any_family(family: str, recipe: str) -> None:
    name, arguments, size = FAMILIES[family]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **arguments)
    images = torch.randn(6, 3, size, size)
    snn = to_spiking(model, RECIPES[recipe].changed(timesteps=2), images)
    with torch.no_grad():
        expected = snn(images)[-1]
        torch.testing.assert_close(ended(snn, images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("coding", ["differential", "rate", "decaying"])
def test_gradients_are_those_of_straight_through_spikes(coding: Any, vit: nn.Module, images: Tensor) -> None:
    """Within reach of its last step, a neuron's value has the gradient of its last target: that of the ANN at that point.

    So a network of exact neurons, shown what the spiking one decoded, has the same gradients.
    """
    snn = to_spiking(vit, make_recipe(timesteps=3, coding=coding, thresholds="static", headroom=8.0), images)
    found = endings_of(snn.network, images, snn.recipe)
    assert all(bool(ending.reached.all()) for ending in found.values())
    ended(snn, images).square().sum().backward()
    repeated = {name: p.grad.clone() for name, p in snn.network.named_parameters() if p.grad is not None}
    snn.network.zero_grad()
    snn.network.requires_grad_(True)
    errors = {module: ending.error for module, ending in found.items()}
    handles = [module.register_forward_hook(lambda m, x, y: y + errors[m]) for _, module in neurons(snn.network)]
    with vit2snn.spiking.analog():
        snn.network(images).square().sum().backward()
    for handle in handles:
        handle.remove()
    for name, parameter in snn.network.named_parameters():
        if name in repeated:
            torch.testing.assert_close(repeated[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_what_spikes_cannot_reach_has_no_gradient(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, make_recipe(timesteps=1, thresholds="static", headroom=0.01, prior="none", bias=False), images)
    found = endings_of(snn.network, images, snn.recipe)
    assert any(not bool(ending.reached.any(-1).all()) for ending in found.values())
    neuron = snn.neurons()["blocks.0.mlp.fc1.neuron"]
    target = torch.zeros(1, *found[neuron].error.shape, requires_grad=True)
    found[neuron].added_to(target).sum().backward()
    assert torch.equal(target.grad, found[neuron].reached.float().unsqueeze(0))


@pytest.mark.parametrize("name", ["faithful", "binary", "ternary", "binary-rate"])
def test_nothing_is_decoded_beyond_the_range(name: str, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, RECIPES[name].changed(timesteps=3), images)
    extremes: dict[str, list[Tensor]] = {}
    for sign in (-1, 1):
        for path, neuron in snn.neurons().items():
            target, state = torch.full((1, *neuron.prior.shape), sign * 1e6), None
            for t in range(3):
                state, _ = neuron.step(t, target, state)
            extremes.setdefault(path, []).append(state[0])
    for path, (low, high) in extremes.items():
        least, largest = snn.neurons()[path].range_after(3)
        silent = torch.isinf(snn.neurons()[path].silence[0]).expand_as(low) if len(snn.neurons()[path].silence) else low > high
        torch.testing.assert_close(torch.where(silent, 0.0, low), torch.where(silent, 0.0, least.expand_as(low)))
        torch.testing.assert_close(torch.where(silent, 0.0, high), torch.where(silent, 0.0, largest.expand_as(high)))


# The fit


@pytest.mark.slow
def test_the_demo_loses_less(demo_sample: tuple[Tensor, Tensor, Tensor]) -> None:
    demo, (shown, others, labels) = load_model("demo"), demo_sample
    recipe = RECIPES["ternary-stepwise"].changed(timesteps=4)
    before, after = (to_spiking(demo, recipe.changed(refit_passes=passes), shown) for passes in (0, 16))
    assert error(after, others) < 0.85 * error(before, others)
    for name, neuron in after.neurons().items():
        assert torch.equal(neuron.threshold, before.neurons()[name].threshold)
    torch.testing.assert_close(after.ann(others), demo(others).detach())
    agreements = [evaluate(snn, [(others, labels)], [4]).points[-1].agreement for snn in (before, after)]
    assert agreements[1] > agreements[0]


def test_what_does_not_help_is_taken_back(vit: nn.Module, images: Tensor, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr("vit2snn.convert.fit_coded.RATE", 10.0)
    snn, plain = (to_spiking(vit, FEW.changed(refit_passes=passes), images) for passes in (1, 0))
    assert "weights are as they were" in caplog.text
    for name, value in snn.network.state_dict().items():
        assert torch.equal(value, plain.network.state_dict()[name]), name


@pytest.mark.slow
def test_it_depends_on_its_arguments_alone(vit: nn.Module, images: Tensor) -> None:
    weights = vit.state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    first = to_spiking(vit, FEW, images).network.state_dict()
    torch.rand(3)
    second = to_spiking(vit, FEW, list(images.split(5))).network.state_dict()
    third = to_spiking(vit, FEW, images).network.state_dict()
    assert all(torch.equal(first[name], third[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in second.items())  # other batches, other thresholds
    assert all(torch.equal(before[name], value) for name, value in weights.items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision(kind: torch.dtype, images: Tensor) -> None:
    seen: list[Progress] = []
    snn = to_spiking(make_vit().to(kind), FEW, images.to(kind), fitting=Fitting(report=seen.append))
    assert {p.dtype for p in snn.parameters()} == {kind}
    assert seen[-1].done == 1 and seen[0].stage == "weights, spikes"
    assert torch.isfinite(snn(images.to(kind))).all()


def test_gradients_reach_weights_in_mixed_precision(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, FEW.changed(refit_passes=0), images)
    likeness = Likeness(vit, snn.recipe)
    with torch.autocast("cpu", torch.bfloat16):
        likeness(snn.network, images, torch.zeros(len(images)))["output"].backward()
    gradients = {name: p.grad for name, p in snn.network.named_parameters() if p.ndim > 1}
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())


@pytest.mark.slow
def test_statistics_of_batch_normalisation_stay() -> None:
    torch.manual_seed(0)
    model = timm.create_model("levit_128s", img_size=64, num_classes=5).eval()
    images = torch.randn(8, 3, 64, 64)
    snn, plain = (to_spiking(model, FEW.changed(refit_passes=passes), images) for passes in (1, 0))
    for name, buffer in snn.network.named_buffers():
        if "running" in name:
            assert torch.equal(buffer, plain.network.get_buffer(name)), name


def test_weights_of_integers_stay_such(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, FEW.changed(weight_bits=4), images)
    weight, plain = (
        m.network.get_parameter("blocks.0.mlp.fc1.weight")
        for m in (snn, to_spiking(vit, FEW.changed(weight_bits=4, refit_passes=0), images))
    )
    assert all(len(row.unique()) <= 16 for row in weight.detach())
    assert weight.shape == plain.shape


def test_substitutes_are_fitted_first(vit: nn.Module, images: Tensor) -> None:
    recipe = RECIPES["qkformer-binary"].changed(timesteps=2, refit="ridge", refit_passes=1)
    snn = to_spiking(vit, recipe, images)
    torch.testing.assert_close(snn.ann(images), vit(images).detach())
    assert snn.exact(images) is None


# Recipes and the command line


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("exact", "neurons of 0 levels are exact"),
        ("spike-driven", "beside membrane neurons it can only be 0"),
        (Recipe(max_energy=0.5), "changes the energy after it was met"),
    ],
)
def test_recipes_that_cannot_be(recipe: Any, told: str) -> None:
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    with pytest.raises(RecipeError, match=told):
        chosen.changed(refit_passes=1)
    with pytest.raises(RecipeError, match="from 0 to"):
        dataclasses.replace(Coded(), refit_passes=-1)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments))


CONVERT = ["convert", "demo", "--recipe", "binary", "--timesteps", "1", "--samples", "32"]


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(*CONVERT, "--refit", "spikes", "--passes", "1", "-o", str(out))
    assert result.exit_code == 0, result.output
    assert (out / "metrics.csv").read_text().count("\n") == 2  # one update of 28 images
    assert json.loads((out / "config.json").read_text())["vit2snn"]["recipe"]["spikes"]["refit_passes"] == 1
    assert not (tmp_path / "out.training").exists()
    snn, ann = vit2snn.load(out), load_model("demo")
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(snn.ann(x), ann(x).detach())
    wrong = run(*CONVERT, "--refit", "ridge", "--passes", "1", "-o", str(tmp_path / "b"))
    assert wrong.exit_code == 2 and "--refit network or spikes" in wrong.output


@pytest.mark.slow
def test_an_interrupted_fit_is_resumed_to_the_same_weights(
    tmp_path: Path, vit: nn.Module, images: Tensor, monkeypatch: Any
) -> None:  # fmt: skip
    monkeypatch.setattr("vit2snn.convert.fit_coded.EVERY", 1)

    def stop(progress: Progress) -> None:
        if progress.done > 0.4:
            raise KeyboardInterrupt

    recipe = FEW.changed(refit_passes=4)
    with pytest.raises(KeyboardInterrupt):
        to_spiking(vit, recipe, images, fitting=Fitting(folder=tmp_path, report=stop))
    done: list[Progress] = []
    resumed = to_spiking(vit, recipe, images, fitting=Fitting(folder=tmp_path, resume=True, report=done.append))
    assert 0 < len(done) < 4
    whole = to_spiking(vit, recipe, images).network.state_dict()
    assert all(torch.equal(whole[name], value) for name, value in resumed.network.state_dict().items())
    with pytest.raises(ArtifactError, match="seed"):
        to_spiking(vit, recipe, images, seed=1, fitting=Fitting(folder=tmp_path, resume=True))


def test_a_loader_that_shuffles_stays_in_its_batches(vit: nn.Module, images: Tensor) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=4, shuffle=True)
    snn = to_spiking(vit, FEW, loader)
    assert torch.isfinite(snn(images)).all()


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    launch(__file__, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], value) for name, value in second.items())
    plain = to_spiking(make_vit(), FEW.changed(refit_passes=0), torch.randn(4, 3, 16, 16)).network.state_dict()
    assert not torch.equal(plain["head.weight"], first["head.weight"])  # they were trained, and not taken back


def together(folder: Path) -> None:
    """What one of two processes does."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    images = (torch.randn(128, 2) @ torch.randn(2, 3 * 16 * 16)).unflatten(1, (3, 16, 16))  # that tell of each other
    snn = to_spiking(make_vit(), FEW.changed(refit_passes=20), images[rank::2])
    torch.save(snn.network.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    together(Path(sys.argv[1]))
