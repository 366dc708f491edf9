"""On which device a command computes, alone and as one of several processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from click.testing import CliRunner

from vit2snn.cli import cli
from vit2snn.commands.processes import find_device, launched


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """As if there were two GPUs; those that were made the current one."""
    chosen: list[torch.device] = []
    PartialState._reset_state()  # of what other tests have trained in this process
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def launch(monkeypatch: pytest.MonkeyPatch, local: int, processes: int = 2) -> None:
    """The environment of a launched process."""
    for name, value in {"LOCAL_RANK": local, "LOCAL_WORLD_SIZE": processes, "RANK": 0, "WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))


def test_devices_are_found_by_name(gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("auto") == find_device("cuda") == torch.device("cuda:0")
    assert find_device("cuda:1") == torch.device("cuda:1") and find_device("cpu") == torch.device("cpu")
    for name, why in {
        "cuda:2": "sees 2 GPUs", "mps": "no double precision", "meta": "ever been run", "quantum": "none of that name",
    }.items():  # fmt: skip
        with pytest.raises(click.UsageError, match=f"device '{name}' cannot be used: .*{why}.*; choose cpu, cuda"):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(click.UsageError, match="sees 0 GPUs"):
        find_device("cuda")


def test_a_process_by_itself_gets_the_device_that_was_named(gpus: list[torch.device]) -> None:
    with launched("cuda:1") as device:
        assert device == torch.device("cuda:1") and not dist.is_initialized()


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_launched_process_gets_the_gpu_of_its_number(
    name: str, gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backends = []
    begin = dist.init_process_group

    def begin_on_cpu(backend: str, **options: Any) -> None:
        backends.append(backend)
        begin("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which a group replaces for good
    monkeypatch.setattr(dist, "init_process_group", begin_on_cpu)
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)
    monkeypatch.setattr(dist, "barrier", lambda *_, **__: None)
    launch(monkeypatch, local=1)
    with launched(name) as device:
        assert device == torch.device("cuda:1") and gpus == [device]
        assert backends == ["nccl"] and dist.is_initialized()
    assert not dist.is_initialized()


def test_gpus_that_processes_cannot_have_each_are_refused(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launch(monkeypatch, local=1)
    for command in (["convert", "demo", "-o"], ["train", "spikformer_4_384_cifar10", "-o"]):
        result = CliRunner().invoke(cli, [*command, str(tmp_path / "out"), "--device", "cuda:1"])
        assert result.exit_code == 2 and "--device cuda:1 is one GPU" in result.stderr, result.output
    launch(monkeypatch, local=1, processes=3)
    with pytest.raises(click.UsageError, match="3 processes need a GPU each, of 2"), launched("auto"):
        pass
    assert not dist.is_initialized() and not list(tmp_path.iterdir())


def test_every_command_that_reads_images_has_the_same_options() -> None:
    for name in ("convert", "evaluate", "audit", "plan", "finetune", "train"):
        options = {option.name for option in cli.commands[name].params}
        assert {"data", "workers", "device", "batch_size"} <= options, name
    assert "device" in {option.name for option in cli.commands["demo"].params}
