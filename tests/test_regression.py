"""Streamed sums, and the balance of thresholds."""

from __future__ import annotations

import itertools

import pytest
import torch

from vit2snn.calibration import Moments, NormalEquations
from vit2snn.calibration.balance import GAINS, OFFSETS, at_rate, counts, least_error
from vit2snn.spiking import IF, LIF, IntegerLIF, Neuron, TernaryLIF


def test_moments_of_a_stream_are_those_of_all_samples() -> None:
    x = torch.randn(300, 4) * torch.tensor([1.0, 10.0, 0.0, 1e-3]) + 5
    moments = Moments()
    for part in x.split(64):
        moments.update(part)
    torch.testing.assert_close(moments.mean.float(), x.mean(0))
    torch.testing.assert_close(moments.variance.float(), x.var(0, correction=0), rtol=1e-3, atol=1e-9)


def test_ridge_regression_of_a_stream_is_that_of_all_samples() -> None:
    torch.manual_seed(0)
    x, true = (torch.rand(500, 6) < 0.3).float(), torch.randn(3, 6)
    y = x @ true.T + 2 + 0.1 * torch.randn(500, 3)
    equations = NormalEquations()
    for part in zip(x.split(100), y.split(100), strict=True):
        equations.update(*part)
    exact = torch.linalg.lstsq(torch.cat([x, torch.ones(500, 1)], 1), y).solution.T
    weight, bias = (solved.float() for solved in equations.solve(1e-9))
    torch.testing.assert_close(torch.cat([weight, bias[:, None]], 1), exact, rtol=1e-3, atol=1e-3)

    centred, ridge = x - x.mean(0), 0.5
    strength = 500 * ridge * x.var(0, correction=0).mean()
    expected = torch.linalg.solve(centred.T @ centred + strength * torch.eye(6), centred.T @ (y - y.mean(0))).T
    torch.testing.assert_close(equations.solve(ridge)[0].float(), expected, rtol=1e-3, atol=1e-4)

    moments = equations.through(weight)
    torch.testing.assert_close(moments.mean.float(), (x @ weight.T).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.variance.float(), (x @ weight.T).var(0, correction=0), rtol=1e-3, atol=1e-5)


def test_inputs_that_never_vary_get_no_weight() -> None:
    equations = NormalEquations()
    equations.update(torch.zeros(10, 2), torch.randn(10, 1))
    weight, bias = equations.solve(0.01)
    assert not weight.any()
    assert torch.isfinite(bias).all()


@pytest.mark.parametrize("neuron", [LIF(), IF(v_reset=None), TernaryLIF(), IntegerLIF()])
def test_the_balance_of_least_error_is_the_best_of_all_tried(neuron: Neuron) -> None:
    torch.manual_seed(0)
    target = torch.randn(800, 3)
    currents = target + 0.3 * torch.randn(4, 800, 3)
    gain, offset = least_error(neuron, currents, target)

    def correlation(g: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        rate = counts(neuron, currents * g + b)
        return torch.stack([torch.corrcoef(torch.stack([rate[:, c], target[:, c]]))[0, 1] for c in range(3)]).nan_to_num(-1)

    tried = torch.stack([correlation(*torch.tensor([g, b])) for g, b in itertools.product(GAINS, OFFSETS)])
    torch.testing.assert_close(correlation(gain, offset), tried.amax(0), atol=2e-4, rtol=0)
    assert correlation(gain, offset).min() > 0.7


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("neuron", [LIF(), IF(v_reset=None)])
def test_a_balance_by_rate_fires_at_that_rate(neuron: Neuron, rate: float) -> None:
    torch.manual_seed(0)
    currents = torch.randn(4, 2000, 3) + torch.tensor([0.0, 3.0, -2.0])
    gain, offset = at_rate(neuron, currents, rate)
    torch.testing.assert_close(counts(neuron, currents * gain + offset).mean(0), torch.full((3,), rate), atol=0.01, rtol=0)
