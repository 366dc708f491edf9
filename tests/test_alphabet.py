from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from vit2snn.spiking import Alphabet, Ladder

ALPHABETS = [
    Alphabet(1, signed=False), Alphabet(1), Alphabet(4), Alphabet(8, ratio=3.0), Alphabet(16, ratio=math.sqrt(2)),
    Alphabet(5, ratio=1.3, signed=False),
]  # fmt: skip


def rounded(alphabet: Alphabet, u: torch.Tensor, ladder: Ladder) -> torch.Tensor:
    return alphabet.quantize(u, alphabet.rounding(ladder))


def values(alphabet: Alphabet, threshold: float) -> torch.Tensor:
    ladder = threshold * alphabet.ratio ** -torch.arange(alphabet.levels, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), ladder] + ([-ladder] if alphabet.signed else []))


@pytest.mark.parametrize("alphabet", ALPHABETS)
@given(u=st.floats(-100, 100), threshold=st.floats(0.01, 50))
@settings(max_examples=80, deadline=None)
def test_quantize_gives_the_nearest_value_of_the_alphabet(alphabet: Alphabet, u: float, threshold: float) -> None:
    x = torch.tensor([u], dtype=torch.float64)
    spike = rounded(alphabet, x, alphabet.ladder(torch.tensor(threshold, dtype=torch.float64)))
    available = values(alphabet, threshold)
    assert float((available - spike).abs().min()) < 1e-9 * threshold
    assert float((spike - x).abs()) <= float((available - x).abs().min()) + 1e-9 * threshold


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_levels_are_fixed_points_and_zero_is_silent(alphabet: Alphabet) -> None:
    available = values(alphabet, 3.0)
    assert torch.allclose(rounded(alphabet, available, alphabet.ladder(torch.tensor(3.0, dtype=torch.float64))), available)


def test_a_tie_fires() -> None:
    one = torch.tensor(1.0)
    binary, two = Alphabet(1, signed=False), Alphabet(2)
    assert rounded(binary, torch.tensor(0.5), binary.ladder(one)) == 1.0
    assert rounded(two, torch.tensor([0.75, -0.75]), two.ladder(one)).tolist() == [1.0, -1.0]


def test_thresholds_broadcast_over_channels() -> None:
    ternary = Alphabet(1)
    spikes = rounded(ternary, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), ternary.ladder(torch.tensor([1.5, 4.0])))
    assert spikes.tolist() == [[1.5, 0.0], [-1.5, 0.0]]


def test_kinds() -> None:
    kinds = [alphabet.kind for alphabet in ALPHABETS]
    assert kinds == ["binary", "ternary", "power-of-two", "geometric", "geometric", "geometric"]


@pytest.mark.parametrize(("arguments", "message"), [((0,), "at least 1 level, got 0"), ((2, 1.0), "above 1, got 1.0")])
def test_impossible_alphabets_are_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Alphabet(*arguments)  # type: ignore[arg-type]


@given(u=st.floats(-10, 10), silence=st.floats(0, 5), ratio=st.floats(1.05, 3))
@settings(max_examples=80, deadline=None)
def test_a_ladder_may_have_a_ratio_and_a_silence_of_its_own(u: float, silence: float, ratio: float) -> None:
    alphabet = Alphabet(6)
    one, x = torch.tensor(1.0, dtype=torch.float64), torch.tensor(u, dtype=torch.float64)
    ladder = alphabet.ladder(one, one * ratio, one * silence)
    spike = float(rounded(alphabet, x, ladder))
    nearest = float(rounded(Alphabet(6, ratio), x, Alphabet(6, ratio).ladder(one)))
    assert spike == (pytest.approx(nearest) if abs(u) >= silence else 0.0)


def test_infinite_silence_never_fires() -> None:
    alphabet = Alphabet(4)
    ladder = alphabet.ladder(torch.tensor(1.0), silence=torch.tensor([torch.inf, 0.0]))
    assert rounded(alphabet, torch.tensor([[1e9, 1e9]]), ladder).tolist() == [[0.0, 1.0]]
