"""Early exits: calibrated on the calibration images, kept in the artifact, and scored beside the curve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_recipe, make_vit
from torch import Tensor, nn

from vit2snn import load
from vit2snn.convert import Recipe, SpikingModel, to_spiking
from vit2snn.errors import ModelError
from vit2snn.measure import ExitTable, anytime, evaluate, exit_table


@pytest.fixture
def snn(vit: nn.Module, images: Tensor) -> SpikingModel:
    return to_spiking(vit, make_recipe(timesteps=4, levels=2, ratio=2.0), images)


def test_the_least_confidence_at_which_enough_images_keep_their_class() -> None:
    sure = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5], [0.5, 0.5, 0.5, 0.5, 0.5], [1.0] * 5])
    stays = torch.tensor([[True, True, True, False, True], [True, True, False, True, True], [True] * 5])
    table = ExitTable(sure, stays)
    # Of n that stop, n' keep their class, and n' / (n + 1) is to be enough: 3/4 of the three surest.
    assert table.thresholds(0.75).tolist() == pytest.approx([0.7, float("inf"), 0.0])
    assert table.thresholds(0.5).tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert table.thresholds(0.8).tolist() == pytest.approx([float("inf"), float("inf"), 0.0])
    for impossible in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            table.thresholds(impossible)


@pytest.mark.slow
@torch.no_grad()
def test_each_image_takes_the_steps_that_it_needs(snn: SpikingModel, images: Tensor) -> None:
    limits = snn.exit_limits(0.6)
    readout = snn(images)
    sure = readout.softmax(-1).amax(-1)
    logits, taken = anytime(snn, images, 0.6)
    for image in range(len(images)):
        first = next(t for t in range(4) if t == 3 or float(sure[t, image]) >= float(limits[t]))
        assert int(taken[image]) == first + 1
        assert torch.allclose(logits[image], readout[first, image], atol=1e-5)
    assert 1 < float(taken.float().mean()) < 4
    assert torch.equal(snn(images), readout)  # a run that stopped early leaves nothing behind


@torch.no_grad()
def test_the_run_ends_when_all_have_stopped(snn: SpikingModel, images: Tensor) -> None:
    assert snn.exits is not None
    snn.exits = ExitTable(torch.ones(4, 50), torch.ones(4, 50, dtype=torch.bool))
    snn.exits.sure[:] = 0.01
    passes: list[Tensor] = []
    snn.network.register_forward_hook(lambda module, inputs, output: passes.append(output))
    _, taken = anytime(snn, images, 0.9)
    assert taken.tolist() == [1] * len(images)
    assert len(passes) == 1


@pytest.mark.parametrize(
    "recipe", [Recipe(timesteps=3), make_recipe(attention="ssa", mlp="relu", norm="static", refit="ridge", timesteps=3)]
)
def test_scored_beside_the_curve(recipe: Recipe, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, recipe, images)
    labels = torch.arange(len(images)) % 7
    result = evaluate(snn, list(zip(images.split(5), labels.split(5), strict=True)), exit_confidence=0.7)
    early = result.exit
    assert early is not None
    logits, taken = anytime(snn, images, 0.7)
    guess = logits.argmax(1)
    assert early.timesteps == pytest.approx(float(taken.float().mean()))
    assert early.top1 == pytest.approx(100 * float((guess == labels).float().mean()))
    assert early.agreement == pytest.approx(100 * float((guess == snn.ann(images).argmax(1)).float().mean()))
    assert sum(early.stopped) == pytest.approx(100)
    assert early.stopped[0] == pytest.approx(100 * float((taken == 1).float().mean()))
    assert result.points[0].energy <= early.energy <= result.points[-1].energy
    everything = evaluate(snn, [(images, labels)], exit_confidence=0.999).exit
    assert everything is not None and everything.timesteps == 3  # so few images can never show that
    assert everything.energy == pytest.approx(result.points[-1].energy)


def test_the_artifact_keeps_them(snn: SpikingModel, images: Tensor, tmp_path: Path) -> None:
    snn.save(tmp_path / "out")
    again = load(tmp_path / "out")
    assert torch.equal(again.exit_limits(0.6), snn.exit_limits(0.6))


def test_networks_without_exits_say_so(snn: SpikingModel, images: Tensor) -> None:
    synchronous = to_spiking(make_vit(), make_recipe(timesteps=2, schedule="layer-synchronous"), images)
    assert synchronous.exits is None and exit_table(synchronous, [images]) is None
    with pytest.raises(ModelError, match="layer-synchronous' has no early exits"):
        evaluate(synchronous, [(images, torch.zeros(len(images), dtype=torch.int64))], exit_confidence=0.9)
    snn.exits = None
    with pytest.raises(ModelError, match="no calibration of early exits"):
        anytime(snn, images, 0.9)
