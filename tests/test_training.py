from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from test_zoo import SMALL as SIZES, small
from torch import Tensor, nn

import vit2snn.measure
from vit2snn.cli import cli
from vit2snn.errors import DataError, ModelError
from vit2snn.finetune import Settings, Step, train
from vit2snn.measure import evaluate

SMALL = [
    "-a", "dim=32", "-a", "depth=1", "-a", "expert_dim=8", "-a", "pools=1010", "--img-size", "28", "--samples", "200",
    "--lr", "5e-3",
]  # fmt: skip


def stripes(count: int) -> list[tuple[Tensor, Tensor]]:
    """Two classes: horizontal and vertical stripes in noise, in batches of 8."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.rand(count, 3, 32, 32, generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[:, ::4, :] += 1 - label
        image[:, :, ::4] += label
    return list(zip(images.split(8), labels.split(8), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qkformer_10_384", "semm_spikformer_4_384_cifar10", "sdt_8_384"])
def test_a_spiking_transformer_learns(name: str) -> None:
    model: Any = timm.create_model(name, **{**SIZES[name], "num_classes": 2})
    steps: list[Step] = []
    train(model, stripes(64), Settings(epochs=5, lr=5e-3), report=steps.append)
    assert not model.training
    assert len(steps) == 40
    assert (steps[-1].epoch, steps[-1].step, steps[-1].steps) == (4, 7, 8)
    assert max(step.lr for step in steps) == pytest.approx(5e-3)
    assert steps[0].lr < 1e-3 > steps[-1].lr
    assert sum(step.loss for step in steps[-8:]) < sum(step.loss for step in steps[:8]) / 2
    result = evaluate(model, stripes(32))
    assert result.images == 32
    assert result.points[-1].top1 >= 90
    assert [point.timestep for point in result.points] == [1, 2, 3, 4]
    spikes = [point.spikes_per_neuron for point in result.points]
    assert 0 < spikes[0] < spikes[1] < spikes[2] < spikes[3] < 4


def test_any_objective_can_be_trained() -> None:
    model, x = small("spikformer_4_384_cifar10")
    target = torch.randn(4, 7)

    def regression(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"error": nn.functional.mse_loss(network(images), target)}

    steps: list[Step] = []
    batches = [(x, torch.zeros(4))] * 10
    train(model, batches, Settings(epochs=2, lr=1e-2), objective=regression, report=steps.append)
    assert steps[-1].loss < steps[0].loss


def test_training_that_cannot_go_on_says_why() -> None:
    model, x = small("spikformer_4_384_cifar10")
    with pytest.raises(DataError, match="no batches to train on"):
        train(model, [], Settings(epochs=1))
    with pytest.raises(ModelError, match="the loss is nan at step 0 of epoch 1") as caught:
        train(
            model,
            [(x, torch.zeros(4))],
            Settings(),
            objective=lambda network, images, y: {"nan": network(images).sum() * float("nan")},
        )
    assert "--lr" in caught.value.hint
    assert not model.training
    with pytest.raises(DataError, match="labels from 0 to 9 for a model of 7 classes"):
        evaluate(model, [(x, torch.tensor([0, 9, 1, 2]))])
    with pytest.raises(DataError, match="no images to score"):
        evaluate(model, [])


@pytest.mark.slow
def test_the_command_trains_on_the_embedded_images_and_writes_a_timm_model(tmp_path: Path) -> None:
    out = tmp_path / "semm"
    command = [
        "train",
        "semm_spikformer_4_384_cifar10",
        *SMALL,
        "--epochs",
        "8",
        "--batch-size",
        "16",
        "-o",
        str(out),
        "--json",
    ]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    document: Any = json.loads(result.stdout)
    assert document["snn"][-1]["top1"] > 20  # ten classes, from 256 images
    assert json.loads((out / "run.json").read_text())["epochs"] == 8
    again = CliRunner().invoke(cli, ["evaluate", str(out), "--samples", "200", "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["snn"] == document["snn"]
    assert (out / "curve.svg").is_file()
    shown = CliRunner().invoke(cli, ["zoo", "show", str(out)])
    assert f"at {document['snn'][-1]['top1']:.1f} % top-1" in shown.stdout
    taken = CliRunner().invoke(cli, command)
    assert taken.exit_code == 2
    assert "exists already" in taken.stderr
    gate = CliRunner().invoke(cli, ["evaluate", str(out), "--max-drop", "1"])
    assert gate.exit_code == 2
    assert "a zoo model has none" in gate.stderr


@pytest.mark.slow
def test_an_interrupted_training_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    command = ["train", "spikformer_4_384_cifar10", "-a", "dim=24", "-a", "depth=1", "--img-size", "28", "--batch-size", "64"]
    command += ["--epochs", "2", "--accumulate", "2", "--samples", "16"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert CliRunner().invoke(cli, [*command, "-o", str(whole)]).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(vit2snn.measure, "evaluate", interrupt)
        assert CliRunner().invoke(cli, [*command, "-o", str(stopped)]).exit_code == 130
    resumed = CliRunner().invoke(cli, [*command, "-o", str(stopped), "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["qkformer"], 1, "the zoo has no model 'qkformer'"),
        (["spikformer_8_384", "-a", "width=3"], 1, "spikformer_8_384 has no argument 'width'"),
        (["spikformer_8_384", "-a", "dim=wide"], 2, "dim=wide is not a number"),
        (["spikformer_8_384", "-a", "dim"], 2, "'dim' is not NAME=VALUE"),
        (["spikformer_8_384", "-a", "dim=40", "-a", "num_heads=3"], 1, "3 heads do not divide a width of 40"),
        (["spikformer_4_384_cifar10", "--img-size", "30"], 1, "30x30 are not divisible by the model's stride of 4"),
        (["spikformer_4_384_cifar10", "--data", "nowhere"], 1, "there is no folder 'nowhere'"),
        (["spikformer_4_384_cifar10", "--lr", "0"], 2, "0"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["train", *arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
