"""Streamed sums, and regression from them."""

from __future__ import annotations

import torch

from vit2snn.calibration import NormalEquations


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


def test_inputs_that_never_vary_get_no_weight() -> None:
    equations = NormalEquations()
    equations.update(torch.zeros(10, 2), torch.randn(10, 1))
    weight, bias = equations.solve(0.01)
    assert not weight.any()
    assert torch.isfinite(bias).all()
