"""Two processes against one with the doubled batch. Run as a script, this file is one of the processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from click.testing import CliRunner
from conftest import make_recipe, make_vit
from test_shards import launch
from test_zoo import SMALL
from torch import Tensor, nn

from vit2snn.cli import cli
from vit2snn.convert import to_spiking
from vit2snn.data import TrainingLoader
from vit2snn.errors import DataError, ModelError
from vit2snn.finetune import Objective, Settings, Step, Workspace, classification, train
from vit2snn.spiking.shards import alone

COUNT = 48


def item(index: int) -> tuple[Tensor, int]:
    """A noisy image of horizontal or vertical stripes; the noise is the augmentation."""
    image = torch.rand(3, 16, 16)
    image[:, slice(None, None, 4) if index % 2 else slice(None), slice(None) if index % 2 else slice(None, None, 4)] += 1
    return image, index % 2


def middle(model: Any, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """An objective that does not reach the head."""
    features = model.forward_features(x).mean((0, 3, 4))
    return {"near": (features[:, 0] - labels).square().mean()}


def training(batch_size: int, accumulate: int, objective: Objective = classification) -> dict[str, Any]:
    """The losses of the updates, and the weights after the last one."""
    torch.manual_seed(0)
    model: Any = timm.create_model("spikformer_4_384_cifar10", **{**SMALL["spikformer_4_384_cifar10"], "num_classes": 2})
    steps: list[Step] = []
    # Biases in front of a normalisation have gradients of rounding errors, which Adam would bring to full size.
    settings = Settings(max_steps=5, lr=0.05, opt="sgd", accumulate=accumulate, warmup_epochs=0)
    batches = TrainingLoader(item, COUNT, batch_size)
    summary = train(model, batches, settings, objective=objective, report=steps.append)
    assert all(type(module).__module__ != "vit2snn.finetune.distributed" for module in model.modules())
    return {"losses": [step.loss for step in steps], "weights": model.state_dict(), "updates": summary.updates}


def tuned(batch_size: int, objective: Objective, folder: Path | None = None, resume: bool = False) -> dict[str, Any]:
    """The same of a converted network, whose neurons have parameters without an axis."""
    torch.manual_seed(0)
    recipe = make_recipe(attention="qk-mixed", mlp="relu", norm="static", readout="mean", refit="none", timesteps=2)
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with alone():
        snn = to_spiking(make_vit(depth=2, num_classes=2), recipe, images)
    workspace = Workspace(folder, 1, resume) if folder else None
    losses: list[float] = []
    batches, settings = TrainingLoader(item, COUNT, batch_size), Settings(max_steps=4, lr=0.05, opt="sgd")
    train(snn, batches, settings, objective=objective, workspace=workspace, report=lambda step: losses.append(step.loss))
    return {"losses": losses, "weights": snn.state_dict()}


def stopping(calls: int) -> Objective:
    """An objective that is interrupted in its last call."""
    numbers = iter(range(1, calls))

    def objective(model: nn.Module, x: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        if next(numbers, None) is None:
            raise KeyboardInterrupt
        return classification(model, x, labels)

    return objective


def broken(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """An objective whose gradient is not finite in one of two processes."""
    return {"root": (model(x).sum() * 0).sqrt() if dist.get_rank() else model(x).sum()}


def sharded(out: Path) -> list[dict[str, Any]]:
    """What is compared of FSDP alone: a training, and one that was interrupted and resumed."""
    with pytest.raises(ModelError, match="norm of the gradients is nan at step 0 of epoch 1") as caught:
        tuned(4, broken)
    assert ("the gradient of" in str(caught.value)) == (dist.get_rank() == 1)
    whole = tuned(4, classification)
    with pytest.raises(KeyboardInterrupt):
        tuned(4, stopping(3), out)
    dist.barrier()
    resumed = tuned(4, classification, out, resume=True)
    return [whole, resumed]


def take_for_gpus() -> None:
    """accelerate shards on GPUs only: let it take these processes, on CPUs as they are, for such."""
    dist.init_process_group("gloo")
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def main(out: Path) -> None:
    fsdp = "FSDP_VERSION" in os.environ
    if fsdp:
        take_for_gpus()
    found = [training(4, 1), training(2, 2), training(4, 1, middle), training(2, 2, middle)]
    if fsdp:
        assert Accelerator().distributed_type == DistributedType.FSDP
        found += sharded(out)
    if os.environ["RANK"] == "0":
        torch.save(found, out / "found")
    else:
        assert found[0]["losses"] == []  # only the main process reports
    dist.barrier()
    dist.destroy_process_group()


def compared(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["losses"] == pytest.approx(wanted["losses"], abs=1e-5)
    assert wanted["losses"][-1] != pytest.approx(wanted["losses"][0], abs=1e-2)
    for name, value in wanted["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, atol=1e-5, rtol=1e-4, msg=name)


CASES = [(8, 1, classification), (4, 2, classification), (8, 1, middle), (4, 2, middle)]
"""Trainings of one process that are those of two, in `main`."""


@pytest.mark.slow
def test_two_processes_compute_what_one_computes_with_the_doubled_batch(tmp_path: Path) -> None:
    launch(__file__, tmp_path)
    for found, case in zip(torch.load(tmp_path / "found"), CASES, strict=True):
        compared(found, training(*case))


@pytest.mark.slow
def test_sharded_processes_compute_what_one_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"USE_FSDP": "true", "TORCH_DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    monkeypatch.setenv("FSDP_VERSION", "2")
    launch(__file__, tmp_path)
    *found, whole, resumed = torch.load(tmp_path / "found")
    monkeypatch.undo()
    for one, case in zip(found, CASES, strict=True):
        compared(one, training(*case))
    compared(whole, tuned(8, classification))
    assert resumed["losses"] == whole["losses"][2:]
    assert all(torch.equal(value, resumed["weights"][name]) for name, value in whole["weights"].items())


@pytest.mark.slow
def test_the_commands_train_together_and_score_together(tmp_path: Path) -> None:
    def printed(command: str, *arguments: object) -> tuple[dict[str, Any], tuple[str, str]]:
        (out, _), silent = launch("-m", "vit2snn", command, *arguments, "--json", "--device", "cpu")
        return json.loads(out), silent

    small = ["-a", "dim=24", "-a", "depth=1", "--img-size", 28, "--max-steps", 2, "--samples", 101, "--batch-size", 8]
    document, silent = printed("train", "spikformer_4_384_cifar10", *small, "-o", tmp_path / "out")
    assert document["images"] == 101 and silent[0] == ""
    result = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "out"), "--samples", "101", "--json"])
    alone = json.loads(result.stdout)
    assert document["snn"] == alone["snn"] and document["digest"] == alone["digest"]
    result = CliRunner().invoke(cli, ["convert", "demo", "-o", str(tmp_path / "snn"), "--samples", "16", "--timesteps", "1"])
    assert result.exit_code == 0, result.output
    document, silent = printed("finetune", tmp_path / "snn", "--max-steps", 2, "-o", tmp_path / "tuned")
    assert document["updates"] == 2 and silent[0] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "snn", "tuned"]


def places(loader: TrainingLoader) -> list[list[int]]:
    return [[index for _, index in batch] for batch in loader.places]


def test_processes_share_each_batch_and_see_the_same_items() -> None:
    whole, parts = TrainingLoader(item, 50, 8, seed=3), [TrainingLoader(item, 50, 4, seed=3) for _ in range(2)]
    for process, part in enumerate(parts):
        part.share(process, 2)
        part.set_epoch(1)
    whole.set_epoch(1)
    assert len(whole) == len(parts[0]) == 6
    assert places(whole) == [a + b for a, b in zip(*map(places, parts), strict=True)]
    x, labels = next(iter(whole))
    shared = [next(iter(part)) for part in parts]
    assert torch.equal(x, torch.cat([x for x, _ in shared])) and torch.equal(labels, torch.cat([y for _, y in shared]))
    few = TrainingLoader(item, 3, 8)
    few.share(1, 2)
    assert [len(batch) for batch in places(few)] == [1]
    with pytest.raises(DataError, match="3 images cannot be shared by 4 processes"):
        few.share(0, 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
