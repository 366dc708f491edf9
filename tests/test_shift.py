from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn.functional import gelu, softmax

from vit2snn.spiking import shift
from vit2snn.spiking.shift import Lines, ShiftGELU, ShiftLayerNorm, ShiftSoftmax, powers_of_two

TERMS = [1, 2, 3, 4]


def left(terms: int) -> float:
    """What K powers of two leave, at most."""
    return 3 / (2 * 4**terms + 1)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("terms", TERMS)
def test_powers_of_two_leave_what_is_promised_and_no_less(terms: int) -> None:
    x = torch.arange(2**12, 2**13, dtype=torch.float64)
    errors = (powers_of_two(x, terms) / x - 1).abs()
    assert 0.99 * left(terms) < errors.max() < left(terms) + 1e-12


@given(x=st.floats(-1e30, 1e30).filter(lambda x: abs(x) > 1e-30 or x == 0), terms=st.sampled_from(TERMS))
@settings(max_examples=100, deadline=None)
def test_powers_of_two_are_odd_follow_a_shift_and_are_their_own_sum(x: float, terms: int) -> None:
    rounded = powers_of_two(double(x), terms)
    assert (rounded - x).abs() <= left(terms) * abs(x)
    assert torch.equal(powers_of_two(double(-x), terms), -rounded)
    assert torch.equal(powers_of_two(double(8 * x), terms), 8 * rounded)
    assert torch.equal(powers_of_two(rounded, terms), rounded)


def test_one_power_of_two_is_the_nearest() -> None:
    assert powers_of_two(double(0.0, 1.0, 2.9, 3.0, -5.9, 0.3), 1).tolist() == [0.0, 1.0, 2.0, 4.0, -4.0, 0.25]


@pytest.mark.parametrize(("lines", "terms"), [(shift.INVERSE, 2), (shift.INVERSE_ROOT, 2), (shift.POWER, 2), (shift.GELU, 3)])
def test_slopes_are_sums_of_few_powers_of_two(lines: Lines, terms: int) -> None:
    slopes = double(*lines.knots).diff() / lines.step
    assert torch.equal(powers_of_two(slopes, terms), slopes)


def test_lines_go_through_their_knots_and_beyond_them() -> None:
    lines = Lines(-1.0, 0.5, (0.0, 1.0, 0.5))
    assert lines(double(-2.0, -1.0, -0.75, -0.5, -0.25, 0.0, 1.0)).tolist() == [-2.0, 0.0, 0.5, 1.0, 0.75, 0.5, -0.5]
    assert shift.POWER.knots == (1.0, 1.1875, 1.40625, 1.6875, 2.0)


ONE_VARIABLE = [
    (shift.square, torch.square, 0.0, 1 / 8),
    (shift.inverse, torch.reciprocal, -0.0045, 0.0045),
    (shift.inverse_root, torch.rsqrt, -0.0062, 0.0062),
]


@pytest.mark.parametrize(("function", "exact", "lowest", "highest"), ONE_VARIABLE)
def test_relative_errors_of_the_functions_at_any_scale(
    function: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], lowest: float, highest: float
) -> None:
    x = torch.linspace(1, 4, 10_001, dtype=torch.float64)
    error = function(x) / exact(x) - 1
    assert lowest <= error.min() and error.max() <= highest
    assert error.max() > 0.9 * highest
    for places in (-300, 2, 300):  # beyond the range of float32
        shifted = x * 2.0**places
        assert torch.equal(function(shifted) / exact(double(2.0**places)), function(x))


def test_squares_are_even_and_exact_at_powers_of_two_and_zero() -> None:
    assert shift.square(double(0.0, 1.0, -2.0, 0.5, -3.0)).tolist() == [0.0, 1.0, 4.0, 0.25, 10.0]


def test_the_excess_of_squares_of_normally_distributed_values() -> None:
    x = torch.randn(100_000, dtype=torch.float64)
    for scale in (1.0, 1.2, 1.5, 1.8):
        x = x / x.square().mean().sqrt() * scale
        assert shift.square(x).mean() / x.square().mean() - 1 == pytest.approx(shift.SQUARE_EXCESS, abs=0.003)


@given(x=st.floats(-100, 100))
@settings(max_examples=100, deadline=None)
def test_powers(x: float) -> None:
    assert float(shift.power(double(x))) == pytest.approx(2**x, rel=0.0057)


# LayerNorm


def rows(scale: float = 1.0) -> Tensor:
    return torch.randn(5, 7, 96, generator=torch.Generator().manual_seed(3), dtype=torch.float64).add(0.5) * scale


def layer_norm(eps: float = 0.0) -> nn.LayerNorm:
    norm = nn.LayerNorm(96, eps=eps, dtype=torch.float64)
    norm.weight.data.uniform_(0.5, 2.0)
    norm.bias.data.normal_()
    return norm


@pytest.mark.parametrize("terms", TERMS)
@given(scale=st.floats(1e-10, 1e10), power=st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_layer_norm_is_the_exact_one_times_a_factor_near_1(terms: int, scale: float, power: float) -> None:
    x = rows(scale).sign() * rows(scale).abs() ** power  # the most lopsided rows have one value that outweighs all others
    norm = nn.LayerNorm(96, eps=0.0, elementwise_affine=False)
    ratio = ShiftLayerNorm.of(norm, terms)(x) / norm(x)
    factor = ratio.mean(-1, keepdim=True)
    assert torch.allclose(ratio, factor.expand_as(ratio), rtol=1e-6)
    assert factor.log().abs().max() <= math.log(1.05) - math.log(1 - left(terms))


def test_layer_norm_is_closer_on_ordinary_rows() -> None:
    norm, x = nn.LayerNorm(384, elementwise_affine=False), torch.randn(500, 384)
    factor = (ShiftLayerNorm.of(norm, terms=5)(x) / norm(x)).median(-1).values
    assert (factor - 1).abs().max() < 0.015
    assert (factor - 1).square().mean().sqrt() < 0.005


@pytest.mark.parametrize("terms", TERMS)
def test_the_factor_of_a_row_is_a_sum_of_powers_of_two(terms: int) -> None:
    x = rows()
    x = x - x.mean(-1, keepdim=True)
    factor = (ShiftLayerNorm.of(nn.LayerNorm(96, elementwise_affine=False), terms)(x) / x).median(-1).values
    assert torch.allclose(powers_of_two(factor, terms), factor, rtol=1e-12)


@given(places=st.integers(-30, 30))
@settings(max_examples=20, deadline=None)
def test_a_shift_of_the_input_changes_nothing(places: int) -> None:
    norm = ShiftLayerNorm.of(layer_norm())
    with torch.no_grad():
        assert torch.equal(norm(rows(2.0**places)), norm(rows()))


def test_eps_counts_where_the_variance_is_small() -> None:
    norm = ShiftLayerNorm.of(nn.LayerNorm(96, eps=1e-6, elementwise_affine=False))
    assert norm(rows(1e-4)).square().mean() == pytest.approx(1e-8 / (1e-8 + 1e-6), rel=0.1)
    assert norm(rows(1e2)).square().mean() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_without_variance_layer_norm_gives_its_bias(dtype: torch.dtype, eps: float) -> None:
    norm = ShiftLayerNorm.of(layer_norm(eps).to(dtype))
    x = torch.full((2, 96), 3.0, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(norm(x), norm.bias.expand(2, 96))


def test_layer_norm_has_the_keys_and_shares_the_parameters_of_the_exact_one() -> None:
    exact = layer_norm().eval()
    norm = ShiftLayerNorm.of(exact, terms=2)
    assert list(norm.state_dict()) == ["weight", "bias"]
    assert norm.weight is exact.weight and norm.bias is exact.bias
    assert (norm.eps, norm.terms, norm.training) == (exact.eps, 2, False)
    assert ShiftLayerNorm.of(nn.LayerNorm(8, bias=False))(torch.randn(3, 8)).shape == (3, 8)


def test_layer_norm_over_several_axes() -> None:
    x = rows()
    flat = ShiftLayerNorm.of(nn.LayerNorm(7 * 96, elementwise_affine=False))(x.flatten(1))
    assert torch.allclose(ShiftLayerNorm.of(nn.LayerNorm((7, 96), elementwise_affine=False))(x).flatten(1), flat)


# softmax


@pytest.mark.parametrize("terms", TERMS)
@given(scale=st.floats(0, 50), offset=st.floats(-1e4, 1e4))
@settings(max_examples=25, deadline=None)
def test_softmax_weights_are_near_the_exact_ones(terms: int, scale: float, offset: float) -> None:
    scores = rows(scale) + offset
    expected, found = softmax(scores, -1), ShiftSoftmax(terms=terms)(scores)
    reached = expected > expected.amax(-1, keepdim=True) * 2.0**-32
    assert ((found / expected).log().abs()[reached] <= math.log(1.016) - math.log(1 - left(terms))).all()
    assert (found[~reached] <= 2.0**-32).all()


def test_masked_scores_have_no_weight() -> None:
    scores = torch.tensor([[0.0, -math.inf, 1.0, -40.0], [-math.inf, -math.inf, -math.inf, 5.0]])
    weights = ShiftSoftmax()(scores)
    assert torch.equal(weights == 0, torch.tensor([[False, True, False, True], [True, True, True, False]]))
    assert weights[1, 3] == 1.0
    assert ShiftSoftmax()(torch.full((2, 3), -math.inf)).isnan().all()


def test_softmax_along_another_axis() -> None:
    scores = rows()
    assert torch.equal(ShiftSoftmax(dim=1)(scores), ShiftSoftmax()(scores.mT).mT)


# GELU


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_gelu_is_near_the_exact_one(form: str) -> None:
    x = torch.linspace(-10, 10, 20_001)
    error = (ShiftGELU(form)(x) - gelu(x, approximate=form)).abs()
    assert 0.005 < error.max() < 0.006
    assert torch.equal(ShiftGELU()(x[x > 4]), x[x > 4])
    assert torch.count_nonzero(ShiftGELU()(x[x < -4])) == 0


# all of them

MODULES = {
    "layer norm": (lambda: ShiftLayerNorm.of(layer_norm()), layer_norm),
    "softmax": (ShiftSoftmax, lambda: nn.Softmax(-1)),
    "gelu": (ShiftGELU, nn.GELU),
}


@pytest.mark.parametrize(("shifted", "exact"), MODULES.values(), ids=MODULES.keys())
def test_gradients_are_those_of_the_exact_function(shifted: Callable[[], nn.Module], exact: Callable[[], nn.Module]) -> None:
    module, reference, gradients = shifted(), exact(), []
    reference.load_state_dict(module.state_dict())
    for network in (module, reference):
        x = rows().requires_grad_()
        network(x).pow(3).sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in network.parameters())])
    with torch.no_grad():
        assert torch.equal(module(rows()), module(rows().requires_grad_()))
        assert not torch.equal(module(rows()), reference(rows()))
    assert torch.equal(module(rows().requires_grad_()).detach(), module(rows()).detach())
    for found, expected in zip(*gradients, strict=True):
        assert torch.isfinite(found).all()
        assert torch.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.99


def test_the_gradient_of_a_sum_is_the_exact_one() -> None:
    for shifted, exact in MODULES.values():
        x, weights = rows().requires_grad_(), torch.randn(96, dtype=torch.float64)
        torch.manual_seed(0)
        module = shifted()
        torch.manual_seed(0)
        found, expected = (torch.autograd.grad((net(x) * weights).sum(), x)[0] for net in (module, exact()))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shifted", [shifted for shifted, _ in MODULES.values()], ids=MODULES.keys())
def test_values_that_are_not_finite_are_not_hidden(shifted: Callable[[], nn.Module]) -> None:
    x = rows()
    x[2, 3, 4] = math.nan
    assert shifted()(x)[2, 3, 4].isnan()
    assert shifted()(x)[:2].isfinite().all()


@pytest.mark.parametrize("shifted", [shifted for shifted, _ in MODULES.values()], ids=MODULES.keys())
def test_rows_do_not_depend_on_each_other(shifted: Callable[[], nn.Module]) -> None:
    module, x = shifted(), rows()
    assert torch.equal(module(x)[1:2], module(x[1:2]))
