from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from vit2snn.calibration import OBSERVERS, Observer
from vit2snn.calibration.code import Code
from vit2snn.calibration.histogram import BINS, Histogram, edges
from vit2snn.calibration.observers import MseObserver
from vit2snn.calibration.rule import FALLS
from vit2snn.spiking import Alphabet, CodedNeuron, Coding

TERNARY = CodedNeuron(Alphabet(1), Coding.DIFFERENTIAL)
BINARY_RATE = CodedNeuron(Alphabet(1, signed=False), Coding.RATE)


def make(name: str) -> Observer:
    return OBSERVERS[name](99.0, Code.of(TERNARY, 1))


def sample(channels: int = 3, count: int = 4000) -> Tensor:
    return torch.randn(channels, count).abs() * torch.tensor([0.01, 1.0, 300.0])[:channels, None]


@pytest.mark.parametrize("name", OBSERVERS)
def test_merged_shards_equal_the_union(name: str) -> None:
    x = sample()
    whole, left, right, empty = make(name), make(name), make(name), make(name)
    whole.update(x)
    left.update(x[:, :1500])
    right.update(x[:, 1500:2000])
    right.update(x[:, 2000:])
    empty.merge(left)
    empty.merge(right)
    empty.merge(make(name))
    assert torch.equal(empty.value(), whole.value())


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_state_has_constant_size(name: str) -> None:
    observer = make(name)
    for _ in range(3):
        observer.update(sample())
        state = observer.histogram.counts if hasattr(observer, "histogram") else observer.maximum  # type: ignore[attr-defined]
        assert state.shape in {(3, BINS), (3,)}


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_channel_that_was_always_zero_gives_a_finite_value(name: str) -> None:
    observer = make(name)
    observer.update(torch.zeros(2, 100))
    assert torch.isfinite(observer.value()).all()


@pytest.mark.parametrize("q", [50.0, 90.0, 99.9, 100.0])
def test_percentile_is_that_of_numpy_to_the_width_of_a_bin(q: float) -> None:
    x = sample()
    histogram = Histogram()
    histogram.update(x)
    assert histogram.percentile(q).numpy() == pytest.approx(np.percentile(x.numpy(), q, axis=1), rel=0.125)


def test_every_magnitude_is_in_its_bin() -> None:
    edge = edges(torch.device("cpu"))
    assert len(edge) == BINS + 1
    assert (edge.diff() > 0).all()
    for x in [0.0, 2.0**-30, 2.0**-24, 0.3, 1.0, 1.12, 1.125, 7.99, 65535.0, 1e9]:
        histogram = Histogram()
        histogram.update(torch.tensor([[x]]))
        where = int(histogram.counts[0].nonzero())
        assert edge[where] <= x
        assert x < edge[where + 1] or where == BINS - 1


def test_max_is_the_maximum() -> None:
    observer, x = make("max"), sample()
    observer.update(x)
    assert torch.equal(observer.value(), x.amax(1).double())


@pytest.mark.parametrize(("neuron", "steps"), [(TERNARY, 1), (BINARY_RATE, 8), (CodedNeuron(Alphabet(4)), 1)])
def test_mse_is_within_five_per_cent_of_the_best_threshold(neuron: CodedNeuron, steps: int) -> None:
    x = sample(2)
    code = Code.of(neuron, steps)
    observer = OBSERVERS["mse"](99.0, code)
    observer.update(x)

    def error(channel: int, threshold: float) -> float:
        decoded = code.decode(x[channel].double(), torch.tensor(threshold, dtype=torch.float64))
        return float((decoded - x[channel]).square().mean())

    for channel, value in enumerate(observer.value().tolist()):
        best = min(error(channel, float(x[channel].max()) * factor) for factor in np.geomspace(0.01, 1.5, 200))
        assert error(channel, value) <= 1.05 * best


@pytest.mark.slow
@pytest.mark.parametrize("timesteps", [2, 4])
def test_the_schedule_is_within_ten_per_cent_of_the_best_one(timesteps: int) -> None:
    x = torch.stack([torch.randn(20000).abs(), torch.rand(20000), torch.softmax(3 * torch.randn(200, 100), 1).flatten()])
    code = Code.of(TERNARY, timesteps)
    observer = MseObserver(code)
    observer.update(x)

    def error(channel: int, threshold: float, fall: float) -> float:
        first = torch.tensor(threshold, dtype=torch.float64)
        decoded = dataclasses.replace(code, fall=fall).decode(x[channel].double(), first)
        return float((decoded - x[channel]).square().mean())

    values, falls = observer.schedule(FALLS)
    for channel, (value, fall) in enumerate(zip(values.tolist(), falls.tolist(), strict=True)):
        most = float(x[channel].max())
        best = min(error(channel, most * f, r) for f in np.geomspace(0.1, 1.2, 40) for r in np.linspace(0.15, 0.6, 19))
        assert error(channel, value, fall) <= 1.1 * best
        left = x[channel : channel + 1].double()
        for _ in range(timesteps):  # the best threshold for each timestep by itself, far from the best for a Gaussian
            alone = MseObserver(Code.of(TERNARY, 1))
            alone.update(left.abs())
            left = left - alone.code.decode(left, alone.value()[:, None])
        assert error(channel, value, fall) < (0.8 if channel == 0 else 1.05) * float(left.square().mean())


def test_entropy_keeps_more_of_the_distribution_than_a_threshold_that_clips_or_one_that_silences() -> None:
    x = torch.rand(1, 20000)
    observer = OBSERVERS["entropy"](99.0, Code.of(BINARY_RATE, 8))
    observer.update(x)
    assert 0.7 <= float(observer.value()) <= 1.4
