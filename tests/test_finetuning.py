from __future__ import annotations

import copy
import csv
import errno
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import make_recipe, make_vit
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vit2snn.cli import cli
from vit2snn.convert import Recipe, SpikingModel, to_spiking
from vit2snn.data import Augmentation, TrainingLoader, array_source, training_images, unlabelled_images
from vit2snn.errors import ArtifactError, DataError, ModelError, OutputExistsError, Vit2SnnError
from vit2snn.finetune import (
    Distillation,
    Settings,
    Step,
    Workspace,
    check_folder,
    classification,
    close_folder,
    drop_folder,
    layer_scale,
    open_folder,
    train,
)
from vit2snn.finetune.checkpoint import load_checkpoint
from vit2snn.finetune.optimisation import make_optimizer, parameter_groups
from vit2snn.zoo.demo import demo_images

SETTINGS = Settings(epochs=2, lr=1e-3, ema=0.9, accumulate=2, seed=5)


def item(index: int) -> tuple[Tensor, int]:
    return torch.randn(3, 16, 16) + index % 7, index % 7


def loader(batch_size: int = 4, workers: int = 0) -> TrainingLoader:
    mix = Augmentation(mixup=0.5).mix(7)
    return TrainingLoader(item, 28, batch_size, seed=1, workers=workers, mix=mix)


@pytest.fixture
def snn(vit: nn.Module, images: Tensor) -> SpikingModel:
    vit.blocks[0].mlp.drop1.p = 0.2  # type: ignore[index, union-attr]
    return to_spiking(vit, Recipe(timesteps=2), images)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The data


def drain(batches: TrainingLoader, epoch: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    batches.set_epoch(epoch, start)
    return list(batches)


def test_the_data_depend_on_seed_and_epoch_and_on_nothing_else() -> None:
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    first, again = drain(loader(), 0), drain(loader(workers=2), 0)
    assert len(first) == 7 and first[0][1].shape == (4, 7)  # probabilities, from mixup
    assert all(torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in zip(first, again, strict=True))
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert np.array_equal(np.random.get_state()[1], state[2])  # type: ignore[index]
    later = drain(loader(), 0, start=5)
    assert [x.tolist() for x, _ in later] == [x.tolist() for x, _ in first[5:]]
    assert not torch.equal(drain(loader(), 1)[0][0], first[0][0])
    plain = loader()
    plain.set_epoch(0, mixed=False)
    x, labels = next(iter(plain))
    assert labels.dtype == torch.int64 and not torch.equal(x, first[0][0])


def test_augmentation_is_that_of_timm_and_seeded_by_item(vit: nn.Module) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    source = array_source(pixels, np.arange(6))
    strong = Augmentation(scale=(0.3, 0.4), auto_augment="rand-m9-mstd0.5", reprob=1.0)
    one, two = (next(iter(training_images(vit, source, 6, augmentation=strong)))[0] for _ in range(2))
    assert torch.equal(one, two)
    plain = training_images(vit, source, 6, augmentation=Augmentation(off=True))
    assert torch.equal(drain(plain, 0)[0][0].sum((1, 2, 3)).sort()[0], drain(plain, 1)[0][0].sum((1, 2, 3)).sort()[0])
    assert not torch.equal(one, next(iter(plain))[0])
    with pytest.raises(DataError, match="cannot make the augmentation"):
        Augmentation(auto_augment="nonsense-m9").transform(vit)
    with pytest.raises(DataError, match=r"crops are from 0.8 to 0.3 of the image"):
        Augmentation(scale=(0.8, 0.3)).transform(vit)
    mix = Augmentation(cutmix=1.0).mix(7)
    assert mix is not None
    with pytest.raises(DataError, match="mixup pairs the images of a batch, and got 3"):
        mix(torch.rand(3, 3, 8, 8), torch.arange(3))


def test_images_that_no_model_learns_from_are_refused(vit: nn.Module, tmp_path: Path) -> None:
    pixels = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="all 4 training images are of class 2"):
        training_images(vit, array_source(pixels, np.full(4, 2)), 2)
    with pytest.raises(DataError, match="no images to train on"):
        training_images(vit, array_source(pixels[:0], np.arange(0)), 2)
    with pytest.raises(DataError, match="is no folder that holds images"):
        unlabelled_images(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken.png' is not an image that can be read"):
        unlabelled_images(tmp_path).read(0)  # type: ignore[misc]


# Objectives


def output_of(network: nn.Module, name: str, run: Callable[[], object]) -> Tensor:
    outputs: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda module, x, y: outputs.append(y))
    run()
    handle.remove()
    return outputs[0]


def test_terms_are_what_they_are_called(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, make_recipe(timesteps=2, levels=3), images)
    labels = torch.arange(12) % 7
    terms = Distillation({"labels": 2.0, "soft": 0.5, "features": 3.0}, vit, 4.0, 0.1)(snn, images, labels)
    logits, target = snn(images)[-1], vit(images)
    assert terms["labels"].item() == pytest.approx(2 * F.cross_entropy(logits, labels, label_smoothing=0.1).item())
    p, q = (target / 4).softmax(-1), (logits / 4).softmax(-1)
    assert terms["soft"].item() == pytest.approx(0.5 * 16 * (p * (p / q).log()).sum(-1).mean().item(), rel=1e-4)
    error = 0.0
    for name in ("blocks.0", "blocks.1"):
        student = output_of(snn.network, name, lambda: snn(images)).unflatten(0, (2, 12)).mean(0)
        teacher = output_of(vit, name, lambda: vit(images))
        error += ((student - teacher).square().mean((1, 2)) / teacher.square().mean((1, 2))).mean().item() / 2
    assert error > 1e-4
    assert terms["features"].item() == pytest.approx(3 * error, rel=1e-4)


def test_an_exact_conversion_leaves_nothing_to_distil(vit: nn.Module, images: Tensor) -> None:
    exact = to_spiking(vit, "exact", images)
    terms = Distillation({"soft": 1.0, "features": 1.0}, exact.original())(exact, images, torch.full((12,), -1))
    assert all(term.item() == pytest.approx(0, abs=1e-9) for term in terms.values())


def test_objectives_that_do_not_fit_are_told(snn: SpikingModel, images: Tensor) -> None:
    for given, message in [
        ({"label": 1.0}, "no loss 'label'; choose of labels, soft, features"),
        ({"labels": -1.0}, "weight of the loss 'labels' must be positive, got -1"),
        ({"soft": 1.0}, "the losses soft need a teacher"),
        ({}, "at least one term"),
    ]:
        with pytest.raises(ValueError, match=message):
            Distillation(given)
    labels = torch.arange(12) % 9
    with pytest.raises(DataError, match="labels from 0 to 8 for a model of 7 classes"):
        Distillation({"labels": 1.0})(snn, images, labels)
    with pytest.raises(ModelError, match="the teacher has 5 classes, the model 7"):
        Distillation({"soft": 1.0}, make_vit(num_classes=5))(snn, images, labels)
    with pytest.raises(ModelError, match=r"blocks.0 of the model gives \(12, 17, 32\), that of the teacher \(12, 17, 16\)"):
        Distillation({"features": 1.0}, make_vit(embed_dim=16))(snn, images, labels)
    with pytest.raises(ModelError, match="features are compared block by block: the teacher has"):
        Distillation({"features": 1.0}, make_vit(depth=3))(snn, images, labels)


# The loop


def test_distillation_brings_a_damaged_network_back_to_its_ann(vit: nn.Module, images: Tensor) -> None:
    # Static thresholds: with closed-loop ones, tokens that no logit depends on keep silent, and their features stay.
    recipe = make_recipe(timesteps=2, thresholds="static", observer="percentile", headroom=4.0, ratio=2**0.5)
    snn = to_spiking(vit, recipe, images)
    for parameter in snn.network.parameters():
        parameter.data += 0.3 * parameter.std(correction=0) * torch.randn_like(parameter)
    before, objective = weights(vit), Distillation({"soft": 1.0, "features": 1.0}, vit)
    steps: list[Step] = []
    batches = [(images, torch.full((12,), -1))] * 4
    train(snn, batches, Settings(epochs=15, lr=3e-3), objective=objective, report=steps.append)
    assert steps[-1].terms["soft"] < steps[0].terms["soft"] / 4
    assert steps[-1].terms["features"] < steps[0].terms["features"] / 4
    assert steps[-1].loss == pytest.approx(sum(steps[-1].terms.values()))
    assert same(weights(vit), before)


def test_accumulated_gradients_are_those_of_the_whole_batch(vit: nn.Module, images: Tensor) -> None:
    results = []
    for batch_size, accumulate in [(12, 1), (3, 4)]:
        snn = to_spiking(vit, "exact", images)  # without batch normalisation, and without thresholds that rounding could cross
        steps: list[Step] = []
        settings = Settings(epochs=3, lr=1e-2, opt="sgd", accumulate=accumulate)
        train(snn, TrainingLoader(item, 28, batch_size), settings, report=steps.append)
        results.append(([step.loss for step in steps], weights(snn)))
    (losses, whole), (parts_losses, parts) = results
    assert len(losses) == 6
    assert parts_losses == pytest.approx(losses, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)


def test_the_average_of_the_weights_is_the_result(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, Recipe(timesteps=1), images)
    average: dict[str, Tensor] = {}

    def follow(step: Step) -> None:
        decay = min(0.6, 1 - (1 + step.update) ** (-2 / 3))
        for name, value in snn.network.named_parameters():
            average[name] = torch.lerp(value.detach(), average.get(name, value.detach()), decay)

    train(snn, TrainingLoader(item, 28, 4), Settings(epochs=1, lr=1e-2, ema=0.6), report=follow)
    for name, value in snn.network.named_parameters():
        torch.testing.assert_close(value.detach(), average[name], atol=1e-6, rtol=1e-5)


def test_learning_rates_follow_layer_name_and_schedule(snn: SpikingModel) -> None:
    by_layer = layer_scale(snn.network, 0.5)
    scales = {name: by_layer(name) for name in ("head.weight", "blocks.1.mlp.fc1.weight", "blocks.0.mlp.fc1.bias")}
    assert scales["head.weight"] / 4 <= scales["blocks.1.mlp.fc1.weight"] == 2 * scales["blocks.0.mlp.fc1.bias"]
    groups = parameter_groups(snn, 0.1, lambda name: 5.0 if "head" in name else 1.0)
    names = {id(p): name for name, p in snn.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            assert group["lr_scale"] == (5.0 if "head" in name else 1.0)
            exempt = parameter.ndim < 2 or name.endswith(".bias") or "pos_embed" in name or "cls_token" in name
            assert group["weight_decay"] == (0.0 if exempt else 0.1), name
    assert not names
    steps: list[Step] = []
    train(
        snn, [(torch.randn(4, 3, 16, 16), torch.arange(4))] * 5, Settings(epochs=3, lr=1e-2), lr_scale=lambda name: 0.0,
        report=steps.append,
    )  # fmt: skip
    before = weights(snn)
    train(
        snn, [(torch.randn(4, 3, 16, 16), torch.arange(4))] * 5, Settings(lr=1e-2), lr_scale=lambda name: float("head" in name)
    )
    assert {n.split(".")[1] for n, v in weights(snn).items() if not torch.equal(v, before[n])} == {"head"}
    with pytest.raises(ModelError, match="Linear does not tell its layers apart"):
        layer_scale(nn.Linear(2, 2), 0.5)
    with pytest.raises(ModelError, match="no parameters to train"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)
    with pytest.raises(ModelError, match="cannot make the optimizer 'adamwow'"):
        make_optimizer(snn, Settings(opt="adamwow"), lambda name: 1.0)


def test_settings_out_of_range_are_told() -> None:
    for name, value in {
        "epochs": 0,
        "lr": float("nan"),
        "sched": "stairs",
        "accumulate": 0,
        "ema": 1.0,
        "precision": "int8",
    }.items():
        with pytest.raises(ValueError, match=f"the setting {name} of a training is out of range"):
            Settings(**{name: value})
    with pytest.raises(DataError, match="no batches to train on: 7, and an update takes 8"):
        train(nn.Linear(2, 2), loader(), Settings(accumulate=8))
    with pytest.raises(ModelError, match="the precision 'fp16' needs a GPU, and the model is on cpu"):
        train(nn.Linear(2, 2), loader(), Settings(precision="fp16"))


def test_neurons_keep_float32_in_mixed_precision(snn: SpikingModel, images: Tensor) -> None:
    seen: dict[str, set[torch.dtype]] = {"linear": set(), "neuron": set()}
    for neuron in snn.neurons().values():
        neuron.register_forward_hook(lambda module, x, y: seen["neuron"].add(y.dtype))
    for module in snn.network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, x, y: seen["linear"].add(y.dtype))
    before, steps = weights(snn), list[Step]()
    objective = Distillation({"labels": 1.0, "soft": 1.0, "features": 1.0}, snn.original())
    settings = Settings(epochs=1, precision="bf16", lr=1e-2)
    train(snn, [(images, torch.arange(12) % 7)] * 2, settings, objective=objective, report=steps.append)
    assert seen == {"linear": {torch.bfloat16}, "neuron": {torch.float32}}
    assert all(value.dtype == before[name].dtype for name, value in snn.state_dict().items())
    assert np.isfinite(steps[-1].loss) and not same(before, weights(snn))


# Values that are not finite


class Breaking(nn.Module):
    """Gives infinities, from the n-th call on."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        return x if self.calls >= 0 else x * float("inf")


def test_a_loss_that_is_not_finite_names_step_and_module_and_keeps_the_checkpoint(snn: SpikingModel, tmp_path: Path) -> None:
    snn.network.blocks[1].mlp.norm = Breaking(5)  # type: ignore[index, union-attr]
    workspace = Workspace(open_folder(tmp_path / "out"), every=1)
    with pytest.raises(
        ModelError, match=r"the loss is nan at step 1 of epoch 2: .*out of 'network.blocks.1.mlp.norm'"
    ) as caught:
        train(snn, TrainingLoader(item, 16, 4), Settings(epochs=4), workspace=workspace)
    assert "--lr" in caught.value.hint
    state = load_checkpoint(workspace.folder, json_of(Settings(epochs=4)))
    assert state is not None and state["update"] == 5
    assert not any(torch.isnan(value).any() for value in state["model"].values())


def json_of(settings: Settings) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(settings)


def test_where_values_are_not_finite_is_found_in_inputs_objectives_gradients_and_parameters(images: Tensor) -> None:
    def run(model: nn.Module, x: Tensor, objective: Callable[..., Any] = classification) -> None:
        train(model, [(x, torch.zeros(12, dtype=torch.int64))], Settings(epochs=1), objective=objective)

    with pytest.raises(ModelError, match="the inputs are not finite"):
        run(make_vit(), images * float("nan"))
    with pytest.raises(ModelError, match="the objective does not"):
        run(make_vit(), images, lambda model, x, y: {"log": (model(x) * 0).sum().log()})
    with pytest.raises(
        ModelError, match=r"norm of the gradients is nan at step 0 of epoch 1: .*gradient of 'head.bias' is not"
    ):
        run(make_vit(), images, lambda model, x, y: {"root": (model(x) * 0).sum().sqrt()})
    model = make_vit()
    model.blocks[0].attn.qkv.weight.data[0, 0] = float("inf")  # type: ignore[index, union-attr]
    with pytest.raises(ModelError, match=r"the parameter 'blocks.0.attn.qkv.weight' is not finite"):
        run(model, images)


# Checkpoints


def interrupted(model: nn.Module, folder: Path, after: int, every: int | None, resume: bool = False) -> None:
    """Train until an update, and stop there as if killed."""

    def stop(step: Step) -> None:
        if step.update + 1 == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, loader(), SETTINGS, workspace=Workspace(folder, every, resume), report=stop)


@pytest.mark.parametrize(("every", "stops"), [(None, (2, 4)), (1, (1, 5)), (2, (5, 6))])
def test_a_resumed_training_ends_in_the_same_weights(
    every: int | None, stops: tuple[int, ...], snn: SpikingModel, tmp_path: Path
) -> None:
    whole = copy.deepcopy(snn)
    losses: list[float] = []
    train(whole, loader(), SETTINGS, report=lambda step: losses.append(step.loss))
    assert len(losses) == 6
    folder = open_folder(tmp_path / "out")
    for number, stop in enumerate(stops):
        interrupted(copy.deepcopy(snn), folder, stop, every, resume=number > 0)
    resumed = copy.deepcopy(snn)
    torch.rand(3)  # the state of the generators outside does not matter
    train(resumed, loader(), SETTINGS, workspace=Workspace(folder, every, resume=True))
    assert same(weights(whole), weights(resumed))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == losses
    assert [(row["epoch"], row["step"]) for row in rows] == [(str(e), str(s)) for e in range(2) for s in range(3)]
    assert set(rows[0]) == {"epoch", "step", "lr", "loss", "labels", "images_per_second"}


def no_space(*_: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_checkpoint_before(snn: SpikingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_folder(tmp_path / "out")
    interrupted(copy.deepcopy(snn), folder, 3, every=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(
            ArtifactError, match="cannot be written: No space left on device; the one before it is whole"
        ) as caught:
            train(copy.deepcopy(snn), loader(), SETTINGS, workspace=Workspace(folder, 2, resume=True))
    assert "--resume" in caught.value.hint
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        with pytest.raises(ArtifactError, match=r"cannot be written: .*; the one before it is whole"):
            train(copy.deepcopy(snn), loader(), SETTINGS, workspace=Workspace(folder, 2, resume=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "metrics.csv", "unfinished.txt"]
    state = load_checkpoint(folder, json_of(SETTINGS))
    assert state is not None and state["update"] == 2
    (folder / "checkpoint").write_bytes(b"PK damaged")
    with pytest.raises(ArtifactError, match="checkpoint' cannot be read"):
        load_checkpoint(folder, json_of(SETTINGS))


def test_tensorboard_is_written_on_request(snn: SpikingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workspace = Workspace(open_folder(tmp_path / "out"), tensorboard=True)
    train(snn, loader(), Settings(max_steps=3), workspace=workspace)
    events = EventAccumulator(str(workspace.folder / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"lr", "loss", "labels", "images_per_second"}
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Vit2SnnError, match="TensorBoard is not installed") as caught:
        train(snn, loader(), Settings(max_steps=3), workspace=workspace)
    assert "pip install 'vit2snn[tensorboard]'" in caught.value.hint


# The command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finetuning") / "snn"
    result = run("convert", "demo", "-o", out, "--samples", 16, "--timesteps", 2)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.slow
def test_the_command_tunes_a_conversion(converted: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    loss = ["--loss", "labels=0.5,soft=1,features=0.5", "--mixup", 0.2, "--layer-decay", 0.9, "--new-lr", 2]
    result = run("finetune", converted, "-o", out, "--max-steps", 3, "--timesteps", 1, *loss, "--json")
    assert result.exit_code == 0, result.output
    assert f"vit2snn evaluate {out}" in result.stderr
    document = json.loads(result.stdout)
    assert document["updates"] == 3 and document["loss"] > 0
    assert not (tmp_path / "tuned.training").exists()
    assert len((out / "metrics.csv").read_text().splitlines()) == 4
    record = json.loads((out / "run.json").read_text())
    assert record["loss"] == document["loss"] and record["mixup"] == 0.2 and record["max_steps"] == 3
    assert json.loads((out / "config.json").read_text())["vit2snn"]["recipe"]["timesteps"] == 1
    before, after = (load_file(folder / "model.safetensors") for folder in (converted, out))
    assert before.keys() == after.keys() and not same(before, after)
    score = run("evaluate", out, "--samples", 64, "--json")
    assert score.exit_code == 0, score.output
    told = json.loads(score.stdout)
    ann = json.loads(run("evaluate", converted, "--samples", 64, "--json").stdout)
    assert told["ann"] == ann["ann"]  # the ANN beside it is still the one that was converted


@pytest.mark.slow
def test_a_killed_training_is_resumed_to_the_same_weights(converted: Path, tmp_path: Path) -> None:
    options = ["--max-steps", "30", "--checkpoint-every", "3", "--batch-size", "8", "--ema", "0.9"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run("finetune", converted, "-o", whole, *options)
    assert result.exit_code == 0, result.output
    command = ["finetune", str(converted), "-o", str(killed), *options]
    process = subprocess.Popen([sys.executable, "-m", "vit2snn", *command], stderr=subprocess.DEVNULL)
    rows, stop = tmp_path / "killed.training" / "metrics.csv", random.randint(4, 20)
    while not rows.exists() or len(rows.read_text().splitlines()) <= stop:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not killed.exists()
    refused = run(*command)
    assert refused.exit_code == 2 and "holds an unfinished training" in refused.stderr and "--resume" in refused.stderr
    result = run(*command, "--resume")
    assert result.exit_code == 0, result.output
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes(), f"killed after {stop}"
    columns = [[row.split(",")[:6] for row in (out / "metrics.csv").read_text().splitlines()] for out in (whole, killed)]
    assert columns[0] == columns[1]


@pytest.fixture
def unfinished(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The command of a training that was interrupted after its first checkpoint."""
    command = ["finetune", converted, "-o", tmp_path / "tuned", "--max-steps", 2, "--checkpoint-every", 1, "--batch-size", 4]
    with monkeypatch.context() as patch:
        patch.setattr(SpikingModel, "save", no_space)
        result = run(*command)
        assert result.exit_code == 1 and "no space" in result.output.lower()
    assert (tmp_path / "tuned.training" / "checkpoint").is_file() and not (tmp_path / "tuned").exists()
    yield command


@pytest.mark.slow
def test_a_training_is_resumed_with_its_own_settings_only(unfinished: list[object], tmp_path: Path) -> None:
    data = tmp_path / "data"
    for label in range(10):
        (data / str(label)).mkdir(parents=True)
        Image.fromarray(demo_images("train")[0][label]).save(data / str(label) / "0.png")
    for option, value, message in [
        ("--batch-size", 8, "begun with batch_size of all processes 4, and would be resumed with 8"),
        ("--epochs", 7, "begun with epochs 5, and would be resumed with 7"),
        ("--lr", 0.25, "begun with lr 0.0005, and would be resumed with 0.25"),
        ("--seed", 3, "begun with seed 0, and would be resumed with 3"),
        ("--data", data, "begun with data None, and would be resumed with"),
        ("--loss", "soft=1", "begun with loss {'labels': 0.5, 'soft': 0.5}, and would be resumed with {'soft': 1.0}"),
        ("--hflip", 0, "begun with hflip 0.5, and would be resumed with 0.0"),
    ]:
        result = run(*unfinished, "--resume", option, value)
        assert result.exit_code == 1, result.output
        assert message in result.stderr and "--overwrite" in result.stderr
    result = run(*unfinished, "--resume")  # nothing is left to do but the end
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "tuned.training").exists()


def test_unfinished_trainings_are_not_lost_by_mistake(unfinished: list[object], tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="holds an unfinished training"):
        check_folder(tmp_path / "tuned")
    with pytest.raises(ArtifactError, match=r"there is no unfinished training .* to resume"):
        check_folder(tmp_path / "other", resume=True)
    result = run(*unfinished, "--overwrite", "--seed", 1)
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "tuned" / "metrics.csv").read_text().splitlines()) == 3


def test_what_lies_in_the_way_of_a_training_stays_as_it_is(unfinished: list[object], tmp_path: Path) -> None:
    folder = tmp_path / "tuned.training"
    (folder / "notes.txt").write_text("mine")
    assert run(*unfinished, "--resume").exit_code == 0
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]  # what it wrote is gone
    (folder / "metrics.csv").write_text("mine")
    (folder / "branches").mkdir()
    for option in ("--resume", "--overwrite"):
        refused = run(*unfinished, "--overwrite", option)
        assert refused.exit_code == 1 and "branches' is not of vit2snn" in refused.stderr
    close_folder(tmp_path / "tuned")
    drop_folder(tmp_path / "tuned")
    assert sorted(path.name for path in folder.iterdir()) == ["branches", "metrics.csv", "notes.txt"]
    (folder / "unfinished.txt").write_text("mine, too")
    with pytest.raises(ArtifactError, match=r"unfinished.txt' is not of vit2snn"):
        open_folder(tmp_path / "tuned")


def test_images_need_no_labels_where_the_loss_needs_none(converted: Path, tmp_path: Path) -> None:
    for index, pixels in enumerate(demo_images("train")[0][:8]):
        (tmp_path / "images" / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / "deep" / f"{index}.png")
    command = [
        "finetune",
        converted,
        "-o",
        tmp_path / "tuned",
        "--max-steps",
        1,
        "--batch-size",
        8,
        "--data",
        tmp_path / "images",
    ]
    result = run(*command)
    assert result.exit_code == 1 and "has 1 class folders, the model tells 10 classes apart" in result.stderr
    result = run(*command, "--loss", "soft=1,features=0.1", "--mixup", 0.3)
    assert result.exit_code == 0, result.output
    assert f"--data {tmp_path / 'images'}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--loss", "labels"], 2, "'labels' is not NAME=WEIGHT"),
        (["--loss", "hard=1"], 2, "no loss 'hard'; choose of labels, soft, features"),
        (["--teacher", "vit_tiny_patch16_224"], 1, "the teacher 'vit_tiny_patch16_224' has 1000 classes, the model 10"),
        (["--teacher", "test_vit"], 1, "takes images of input_size (3, 160, 160), the model of (1, 28, 28)"),
        (["--opt", "adamwow"], 1, "cannot make the optimizer 'adamwow'"),
        (["--accumulate", "99"], 1, "no batches to train on: 16, and an update takes 99"),
        (["--aa", "nonsense"], 1, "cannot make the augmentation"),
        (["--resume"], 1, "there is no unfinished training"),
        (["--data", "nowhere"], 1, "there is no folder 'nowhere'"),
    ],
)
def test_wrong_usage_is_told(
    arguments: list[str], code: int, message: str, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    create = timm.create_model

    def untrained(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        classes = {"num_classes": 10} if name == "test_vit" else {}
        return create(name, pretrained=pretrained and name.startswith("local-dir"), **classes, **more)

    monkeypatch.setattr(timm, "create_model", untrained)
    result = run("finetune", converted, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.training").exists()


@pytest.mark.slow
def test_another_teacher_is_taken(converted: Path, tmp_path: Path) -> None:
    from vit2snn.zoo.demo import FOLDER

    command = ["finetune", converted, "--max-steps", 1, "--loss", "soft=1", "--batch-size", 4]
    losses = []
    for name in (["--teacher", FOLDER], ["--teacher", "demo"], []):
        result = run(*command, "-o", tmp_path / f"out{len(losses)}", *name, "--json")
        assert result.exit_code == 0, result.output
        losses.append(json.loads(result.stdout)["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)


def test_help_loads_no_torch() -> None:
    check = "import sys; sys.argv = ['vit2snn', 'finetune', '--help']\nfrom vit2snn.cli import cli\ntry: cli()\nfinally: "
    check += "assert not {'torch', 'timm', 'accelerate'} & set(sys.modules), 'slow import'"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--layer-decay" in done.stdout
