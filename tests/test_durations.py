"""Layers of a layer-synchronous network that take more timesteps than others, or fewer, at the same latency."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_vit
from torch import Tensor, nn

import vit2snn
from vit2snn.calibration import network as calibration
from vit2snn.calibration.durations import shared_out
from vit2snn.convert import RECIPES, SpikingModel, to_spiking
from vit2snn.tracing import depth
from vit2snn.tracing.depth import latencies, stages

T = 4
SIZE = (3, 16, 16)


@pytest.fixture
def deep() -> nn.Module:
    return make_vit(depth=4)


def converted(ann: nn.Module, images: Tensor, timesteps: int = T) -> SpikingModel:
    return to_spiking(ann, RECIPES["ternary-synchronous"].changed(timesteps=timesteps), images)


def lost(snn: SpikingModel, images: Tensor) -> float:
    with torch.no_grad():
        ann = snn.ann(images)
        return float((snn(images)[-1] - ann).norm() / ann.norm())


def test_timesteps_go_where_they_take_away_most() -> None:
    errors = [[8.0, 4.0, 2.0, 1.0], [80.0, 40.0, 20.0, 10.0], [0.8, 0.4, 0.2, 0.1], []]
    assert shared_out(errors, range(3, 7), 16) == [3, 6, 3, 4]
    assert shared_out(errors[:3], range(3, 7), 12) == [3, 6, 3]
    assert shared_out(errors[:3], range(3, 7), 14) == [5, 6, 3]
    assert shared_out(errors[:3], range(4, 8), 12) == [4, 4, 4]


def test_the_latency_stays_and_the_error_falls(deep: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images, others = torch.randn(64, *SIZE), torch.randn(64, *SIZE)
    snn = converted(deep, images)
    taken = {name: len(neuron.threshold) for name, neuron in snn.neurons().items()}
    rows = stages(snn.network, SIZE)
    assert {name for row in rows for name in row} == taken.keys()
    assert len(set(taken.values())) > 1
    assert all(len({taken[name] for name in row}) == 1 for row in rows)
    assert latencies(snn.network, SIZE)(T) == T * depth(snn.network, SIZE) == T * len(rows)
    monkeypatch.setattr(calibration, "durations", lambda network, batches, found, *others: dict.fromkeys(found, T))
    alike = converted(deep, images)
    assert {len(neuron.threshold) for neuron in alike.neurons().values()} == {T}
    assert lost(snn, others) < 0.9 * lost(alike, others)


@torch.no_grad()
def test_runs_of_other_lengths_and_what_comes_back_from_disk(deep: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(32, *SIZE)
    snn = converted(deep, images)
    snn.save(tmp_path / "out")
    again = vit2snn.load(tmp_path / "out")
    for timesteps in (1, T, T + 1):
        logits = snn(images[:3], timesteps)
        assert torch.equal(again(images[:3], timesteps), logits)
        assert torch.equal(snn(images[:3], timesteps, chunk=1), logits)


@pytest.mark.parametrize("timesteps", [1, 2])
def test_few_timesteps_are_not_divided(deep: nn.Module, timesteps: int) -> None:
    snn = converted(deep, torch.randn(32, *SIZE), timesteps)
    assert {len(neuron.threshold) for neuron in snn.neurons().values()} == {timesteps}
