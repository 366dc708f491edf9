"""Memory that runs take, counted before they are made; and refusals of what the machine has not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from vit2snn import evaluate
from vit2snn.cli import cli
from vit2snn.commands import memory
from vit2snn.convert import RECIPES, load_model, to_spiking
from vit2snn.errors import OutOfMemoryError
from vit2snn.spiking import SpikingNetwork
from vit2snn.tracing import Peak, footprint
from vit2snn.zoo import QKFormer

BATCH, TIMESTEPS = 4, 3


def converted(recipe: str = "faithful") -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    overlay = {"input_size": (3, 112, 112)}
    ann = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=112, num_classes=10, pretrained_cfg_overlay=overlay)
    images = torch.randn(BATCH, 3, 112, 112)
    return to_spiking(ann.eval(), RECIPES[recipe].changed(timesteps=TIMESTEPS), images), images


def begun_in_turn() -> tuple[SpikingNetwork, Tensor]:
    return converted("ternary")


def trained() -> tuple[SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    model: Any = timm.create_model("qkformer_4_384_cifar10", dims=[32, 64, 96], timesteps=TIMESTEPS)
    assert isinstance(model, QKFormer)
    return model.eval(), torch.randn(BATCH, 3, 32, 32)


@pytest.fixture(scope="module", params=[converted, begun_in_turn, trained])
def case(request: pytest.FixtureRequest) -> tuple[SpikingNetwork, Tensor]:
    network: tuple[SpikingNetwork, Tensor] = request.param()
    return network


def measured(network: SpikingNetwork, run: Any) -> int:
    """The most bytes that a run takes, with the weights of its network."""
    with Peak() as peak:
        for weight in network.network.parameters():
            peak.count(weight.untyped_storage())
        run()
    return peak.most


def test_a_run_takes_what_was_counted_before(case: tuple[SpikingNetwork, Tensor]) -> None:
    network, images = case
    expected = footprint(network, images.shape, TIMESTEPS)
    assert expected is not None
    chunk = None if isinstance(network, QKFormer) else 1
    with torch.no_grad():
        found = measured(network, lambda: network.readout(images, TIMESTEPS, chunk))
    assert 0.5 < expected / found < 2
    scored = measured(network, lambda: evaluate(network, [(images, torch.zeros(BATCH, dtype=torch.int64))], TIMESTEPS))
    assert 0.5 < expected / scored < 2


def test_a_step_of_training_takes_what_was_counted_before(case: tuple[SpikingNetwork, Tensor]) -> None:
    network, images = case
    assert isinstance(network, nn.Module)
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        network.readout(images, TIMESTEPS).sum().backward()
        optimizer.step()

    state = torch.get_rng_state()
    expected = footprint(network, images.shape, TIMESTEPS, trains=True)
    assert expected is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.5 < expected / measured(network, step) < 2
    network.zero_grad()


def test_what_is_free_again_is_not_counted() -> None:
    with Peak() as peak:
        for _ in range(3):
            x = torch.empty(1000, device="meta").view(10, 100)
            del x
        kept = torch.empty(500, device="meta")
    assert (peak.most, peak.now) == (4000, 4 * kept.numel())


def test_twice_the_images_take_twice_the_memory_without_the_weights(case: tuple[SpikingNetwork, Tensor]) -> None:
    network, images = case
    one, two, four = (footprint(network, (count, *images.shape[1:]), TIMESTEPS) or 0 for count in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.2) and two > one


class Looks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


def test_a_run_that_depends_on_values_is_not_known(case: tuple[SpikingNetwork, Tensor]) -> None:
    network: Any = case[0]
    head = network.network.head
    network.network.head = nn.Sequential(head, Looks())
    try:
        assert footprint(network, case[1].shape, TIMESTEPS) is None
    finally:
        network.network.head = head


@pytest.mark.parametrize(("limit", "expected"), [("1000000\n", 10**6), ("max\n", None), (None, None)])
def test_a_control_group_may_leave_less_than_the_machine_has(
    limit: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "none")
    machine = memory.memory()
    if limit is not None:
        (tmp_path / "limit").write_text(limit)
        monkeypatch.setattr(memory, "LIMIT", tmp_path / "limit")
    assert memory.memory() == (expected or machine) > 0


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(
    case: tuple[SpikingNetwork, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, images = case
    limit = footprint(network, (3, *images.shape[1:]), TIMESTEPS) or 0
    monkeypatch.setattr(memory, "memory", lambda device=None: limit)
    memory.check_run(network, {"batch_size": 3}, None, "x", TIMESTEPS)
    with pytest.raises(OutOfMemoryError, match=r"16 images of 3x.* this machine has") as raised:
        memory.check_run(network, {"batch_size": 16}, None, "x", TIMESTEPS)
    assert raised.value.hint == "take fewer at a time: --batch-size 3"
    monkeypatch.setattr(memory, "memory", lambda device=None: 1000)
    with pytest.raises(OutOfMemoryError, match="one image") as raised:
        memory.check_run(network, {"batch_size": 16}, None, "take another", TIMESTEPS)
    assert raised.value.hint == "take another"


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "demo", "-o", "out"],
        ["train", "qkformer_4_384_cifar10", "-a", "dims=[32,64,96]", "-o", "out"],
        ["evaluate", "snn"],
        ["audit", "snn"],
        ["finetune", "snn", "-o", "out"],
        ["plan", "demo", "-o", "out"],
    ],
)
def test_commands_refuse_what_does_not_fit(
    command: list[str], snn_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "memory", lambda device=None: 10**5)
    result = CliRunner().invoke(cli, [str(snn_folder) if word == "snn" else word for word in command])
    assert result.exit_code == 1 and "GB of memory" in result.output
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def snn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "snn"
    result = CliRunner().invoke(cli, ["convert", "demo", "-o", str(folder), "--samples", "8", "--timesteps", "2"])
    assert result.exit_code == 0, result.output
    return folder


def test_an_edge_that_no_patch_covers_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vit2snn"):
        load_model("deit_tiny_patch16_224", pretrained=False, img_size=224)
        assert not caplog.records
        load_model("deit_tiny_patch16_224", pretrained=False, img_size=100)
    assert [record.getMessage() for record in caplog.records] == [
        "note: of 100 pixels a side, patches of 16 leave out the last 4: --img-size 96 has as many patches"
    ]
