"""What is not finite comes out of a neuron as NaN, and not as silence; its neighbours are none the wiser."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from vit2snn.spiking import IF, LIF, PLIF, Alphabet, CodedNeuron, Coding, IntegerLIF, Neuron, TernaryLIF, eager, simulate

T, B = 3, 3
WRONG = (torch.nan, torch.inf, -torch.inf)
ALPHABETS = {
    "binary": Alphabet(1, signed=False), "ternary": Alphabet(1), "shift": Alphabet(6), "quarter octave": Alphabet(16, 2**0.25),
    "unsigned": Alphabet(5, 2**0.5, signed=False), "any ratio": Alphabet(6, 1.7),
}  # fmt: skip
MEMBRANES: dict[str, Neuron] = {
    "IF": IF(), "soft": IF(v_reset=None), "LIF": LIF(), "no decay": LIF(decay_input=False), "PLIF": PLIF(),
    "elsewhere": LIF(v_reset=-0.3), "ternary": TernaryLIF(), "integer": IntegerLIF(),
}  # fmt: skip


def heard(neuron: Neuron, x: Tensor, way: str) -> Tensor:
    """By the kernels, by the references, or by what has a gradient."""
    with eager() if way == "eager" else nullcontext(), torch.set_grad_enabled(way == "graded"):
        return simulate(neuron, neuron.clock, x.clone().requires_grad_(way == "graded"), T).detach()


def check(neuron: Neuron, way: str) -> None:
    x = torch.randn(T, B, 2, 5, 11, generator=torch.Generator().manual_seed(1))
    expected = heard(neuron, x, way)
    assert expected.isfinite().all()
    for wrong in WRONG:
        given = x.clone()
        given[:, 1, 0, 3, 7] = wrong
        found = heard(neuron, given, way)
        assert found[:, 1, 0, 3, 7].isnan().all()
        found[:, 1, 0, 3, 7] = expected[:, 1, 0, 3, 7]
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("way", ["fused", "eager", "graded"])
@pytest.mark.parametrize("coding", list(Coding))
@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=ALPHABETS)
def test_coded_neurons(alphabet: Alphabet, coding: Coding, way: str) -> None:
    for burst, silence in itertools.product((1, 2), (0.0, torch.inf)):
        neuron = CodedNeuron(alphabet, coding, spikes_per_step=burst)
        neuron.threshold, neuron.prior = torch.ones(2, 1), torch.zeros(())
        neuron.silence = torch.full((2, 1), silence)
        check(neuron, way)


@pytest.mark.parametrize("way", ["fused", "eager", "graded"])
@pytest.mark.parametrize("neuron", MEMBRANES.values(), ids=MEMBRANES)
def test_membranes(neuron: Neuron, way: str) -> None:
    check(neuron, way)


def test_a_zero_keeps_its_sign() -> None:
    """The spikes of finite values are to the last bit what they are without the check."""
    u = torch.tensor([-0.0, 0.0, -0.1, 0.1, -1.0, 1.0, 1e-40, -1e-40])
    for alphabet in ALPHABETS.values():
        levels = alphabet.rounding(alphabet.ladder(torch.ones(1)))
        spikes = alphabet.quantize(u, levels)
        assert torch.equal(spikes.signbit(), u.signbit() & torch.tensor(alphabet.signed))
