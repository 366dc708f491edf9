"""What values are told to be by looking at them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from vit2snn.measure import Kind, Stream, observe, spikes_in
from vit2snn.measure.kinds import join

EXAMPLES: dict[Kind, list[float]] = {
    "silent": [0.0, 0.0, -0.0],
    "binary": [0.0, 1.0, 1.0],
    "ternary": [0.0, 1.0, -1.0],
    "integer": [0.0, 3.0, -1.0, 2.0],
    "power-of-two": [0.0, 0.25, -1.0, 0.125],
    "geometric": [0.0, 1.0, 2**0.25, -(2**-1.5)],
    "analog": [0.0, 1.0, 0.7, -0.31],
}
KINDS: list[Kind] = list(EXAMPLES)
kinds = st.sampled_from(KINDS)
factors = st.floats(1e-3, 1e3).map(lambda x: float(torch.tensor(x)))
dtypes = st.sampled_from([torch.float32, torch.float64])
BELOW = {
    ("silent", kind) for kind in KINDS
} | {
    ("binary", kind) for kind in KINDS if kind != "silent"
} | {
    ("ternary", kind) for kind in KINDS if kind not in ("silent", "binary")
} | {(kind, kind) for kind in KINDS} | {(kind, "analog") for kind in KINDS} | {("power-of-two", "geometric")}  # fmt: skip
"""Every pair of kinds of which the second holds the first."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_told_by_its_values(kind: Kind, dtype: torch.dtype) -> None:
    values = torch.tensor(EXAMPLES[kind], dtype=dtype)
    assert observe(values) == kind
    assert observe(values.reshape(1, -1, 1).expand(2, -1, 3)) == kind
    assert observe(values.flip(0)) == kind


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], "silent"),
        ([-0.3, 0.0, -0.3], "binary"),
        ([5.0, 0.0, -5.0], "ternary"),
        ([1.0, 2.0, 4.0], "integer"),  # as they are: so many spikes
        ([0.3, 0.6, 1.2], "power-of-two"),
        ([0.5, 1.5], "analog"),
        ([1.0, 2 ** (1 / 3)], "geometric"),
        ([1.0, 2 ** (5 / 7), -(2 ** (-2 / 7))], "geometric"),
        ([1.0, 2 ** (1 / 8)], "geometric"),
        ([1.0, 2 ** (1 / 9)], "analog"),
        ([1.0, 1.001], "analog"),
        ([2.0**25, 3.0], "analog"),
        ([float(2**24 - 1), 1.0], "integer"),
    ],
)
def test_values_at_the_borders_of_kinds(values: list[float], kind: Kind) -> None:
    assert observe(torch.tensor(values)) == kind


@given(st.lists(st.integers(-12, 0), min_size=1), st.integers(1, 8), factors, dtypes)
@settings(max_examples=50, deadline=None)
def test_ladders_are_told_whatever_their_largest_level(levels: list[int], m: int, largest: float, dtype: torch.dtype) -> None:
    values = largest * torch.tensor(levels, dtype=torch.float64).div(m).exp2()
    found = observe(values.to(dtype))
    if len(set(levels)) == 1:
        assert found == "binary"
    elif torch.equal(values, values.round()):
        assert found == "integer"
    else:
        steps = {level - max(levels) for level in levels}
        assert found == ("power-of-two" if all(step % m == 0 for step in steps) else "geometric")


@given(kinds, factors, st.booleans(), dtypes)
@settings(max_examples=100, deadline=None)
def test_a_constant_factor_changes_no_kind_but_integers(kind: Kind, factor: float, negative: bool, dtype: torch.dtype) -> None:
    values = torch.tensor(EXAMPLES[kind], dtype=dtype) * (-factor if negative else factor)
    found = observe(values)
    if kind == "integer" and factor != round(factor):
        assert found == "analog"
    elif kind in ("power-of-two", "analog") and torch.equal(values, values.round()):
        assert found == "integer"
    else:
        assert found == kind


@given(kinds, kinds, kinds)
def test_kinds_are_a_lattice(a: Kind, b: Kind, c: Kind) -> None:
    assert join(a, a) == a
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, "silent") == a
    assert join(a, "analog") == "analog"


@pytest.mark.parametrize(("a", "b"), list(itertools.product(KINDS, KINDS)))
def test_the_join_is_the_least_kind_that_holds_both(a: Kind, b: Kind) -> None:
    joined = join(a, b)
    assert (a, joined) in BELOW and (b, joined) in BELOW
    for kind in KINDS:
        if (a, kind) in BELOW and (b, kind) in BELOW:
            assert (joined, kind) in BELOW


@given(kinds, kinds)
def test_a_stream_that_was_seen_twice_holds_both(a: Kind, b: Kind) -> None:
    stream = Stream()
    assert stream.kind is None
    for kind in (a, b, a):
        stream.saw(torch.tensor(EXAMPLES[kind]))
    assert stream.kind == join(a, b)


integers = st.lists(st.integers(-9, 9), min_size=1, max_size=30)


@given(integers, dtypes)
@settings(max_examples=50, deadline=None)
def test_an_integer_is_so_many_spikes(values: list[int], dtype: torch.dtype) -> None:
    found = spikes_in(torch.tensor(values, dtype=dtype))
    assert found is not None and found.dtype == dtype
    assert found.tolist() == [abs(value) for value in values]


@given(st.lists(st.sampled_from([0, 1, -1]), min_size=1, max_size=30), factors, dtypes)
@settings(max_examples=50, deadline=None)
def test_spikes_of_one_magnitude_are_one_each(signs: list[int], magnitude: float, dtype: torch.dtype) -> None:
    found = spikes_in(torch.tensor(signs, dtype=dtype) * magnitude)
    assert found is not None
    each = int(magnitude) if magnitude == int(magnitude) else 1
    assert found.tolist() == [each * abs(sign) for sign in signs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", [[0.5, 0.25], [1.0, 0.5, 0.0], [0.3, -0.31], [2.0**24, 1.0]])
def test_numbers_are_no_spikes(values: list[float], dtype: torch.dtype) -> None:
    assert spikes_in(torch.tensor(values, dtype=dtype)) is None


@pytest.mark.parametrize("place", [0, 100, 4095, 4096, 9999])
@pytest.mark.parametrize("odd", [0.5, 1.5, math.pi])
def test_one_odd_value_anywhere_makes_numbers_of_all(place: int, odd: float) -> None:
    values = torch.zeros(100, 100)
    values[::3] = 1.0
    assert spikes_in(values) is not None
    values.view(-1)[place] = odd
    assert spikes_in(values) is None


@pytest.mark.parametrize("shape", [(2, 3, 4), (1,), (0, 3)])
def test_spikes_keep_the_shape(shape: tuple[int, ...]) -> None:
    values: Tensor = torch.randint(-2, 3, shape).float()
    found = spikes_in(values)
    assert found is not None and torch.equal(found, values.abs())
