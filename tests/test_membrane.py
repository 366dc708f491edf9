from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from vit2snn.spiking import IF, LIF, NEURONS, PLIF, IntegerLIF, Neuron, Surrogate, binary_spikes, simulate
from vit2snn.spiking.surrogate import SHAPES, spike


def run(neuron: Neuron, frames: Tensor, chunk: int | None = None) -> Tensor:
    """Frames ``[T, B, features]`` through a neuron."""
    shaped = frames.reshape(*frames.shape, 1, 1)
    return simulate(neuron, shaped, len(frames), chunk).reshape(frames.shape)


class Reference:
    """The textbook neuron, unrolled with plain autograd: no shared code, the surrogate written as a smooth detour."""

    def __init__(self, tau: float | None, decay: bool, soft: bool, detach: bool, v_reset: float = 0.0) -> None:
        self.tau, self.decay, self.soft, self.detach, self.v_reset = tau, decay, soft, detach, v_reset

    def __call__(self, frames: Tensor, threshold: float, leak: Tensor | None = None) -> Tensor:
        v, spikes = torch.zeros_like(frames[0]), []
        for x in frames:
            rate = leak if leak is not None else (1 / self.tau if self.tau else 0.0)
            h = v + (x - v) * rate if self.decay else v * (1 - rate) + x
            smooth = torch.sigmoid(4 * (h - threshold))
            s = smooth + ((h >= threshold).to(h) - smooth).detach()
            r = s.detach() if self.detach else s
            v = h - threshold * r if self.soft else (1 - r) * h + r * self.v_reset
            spikes.append(s)
        return torch.stack(spikes)


CASES = {
    "IF": (IF(), Reference(None, False, False, True)),
    "IF, soft reset": (IF(v_reset=None, detach_reset=False), Reference(None, False, True, False)),
    "IF, other reset": (IF(v_reset=-0.3, detach_reset=False), Reference(None, False, False, False, -0.3)),
    "LIF": (LIF(), Reference(2.0, True, False, True)),
    "LIF, tau 3": (LIF(tau=3.0), Reference(3.0, True, False, True)),
    "LIF, whole input": (LIF(tau=1.5, decay_input=False), Reference(1.5, False, False, True)),
    "LIF, soft reset": (LIF(v_reset=None), Reference(2.0, True, True, True)),
    "LIF, reset not detached": (LIF(detach_reset=False), Reference(2.0, True, False, False)),
    "LIF, threshold": (LIF(threshold=0.3, v_reset=None, detach_reset=False), Reference(2.0, True, True, False)),
}


@pytest.mark.parametrize("name", CASES)
def test_spikes_and_gradients_through_time_equal_an_unrolled_reference(name: str) -> None:
    neuron, reference = CASES[name]
    frames = (torch.randn(7, 5, 11, dtype=torch.float64) * 1.5 + 0.5).requires_grad_()
    weight = torch.randn(7, 5, 11, dtype=torch.float64)
    expected = reference(frames, neuron.threshold)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), frames)
    spikes = run(neuron, frames)
    (gradient,) = torch.autograd.grad((spikes * weight).sum(), frames)
    assert torch.equal(spikes, expected.round())
    assert 0.05 < float(spikes.detach().mean()) < 0.8
    assert torch.allclose(gradient, wanted, rtol=1e-10, atol=1e-12)


def test_the_learned_leak_has_the_reference_gradient_too() -> None:
    neuron = PLIF(tau=3.0).double()
    assert neuron.w.item() == pytest.approx(-math.log(2))
    frames = torch.randn(6, 4, 3, dtype=torch.float64) * 2
    weight = torch.randn_like(frames)
    w = neuron.w.detach().clone().requires_grad_()
    expected = Reference(None, True, False, True)(frames, 1.0, leak=w.sigmoid())
    (wanted,) = torch.autograd.grad((expected * weight).sum(), w)
    spikes = run(neuron, frames)
    (gradient,) = torch.autograd.grad((spikes * weight).sum(), neuron.w)
    assert torch.equal(spikes, expected.round())
    assert torch.allclose(gradient, wanted, rtol=1e-10)
    assert wanted.abs() > 0


@pytest.mark.parametrize("name", [*CASES, "PLIF", "integer"])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_without_gradients_and_in_chunks_the_spikes_are_the_same(name: str, chunk: int) -> None:
    neuron: Neuron = {"PLIF": PLIF(), "integer": IntegerLIF()}.get(name) or CASES[name][0]
    frames = torch.randn(6, 4, 33) * 2
    whole = run(neuron, frames.clone().requires_grad_()).detach()
    with torch.no_grad():
        assert torch.equal(run(neuron, frames), whole)
        assert torch.equal(run(neuron, frames, chunk), whole)
        assert torch.equal(run(neuron, frames[:2]), whole[:2])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.floats(1.1, 8), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_any_lif_is_the_reference(steps: int, tau: float, decay: bool, soft: bool, seed: int) -> None:
    frames = torch.randn(steps, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
    neuron = LIF(tau=tau, decay_input=decay, v_reset=None if soft else 0.0)
    assert torch.equal(run(neuron, frames), Reference(tau, decay, soft, True)(frames, 1.0).round())


def test_a_tie_fires_and_a_constant_input_at_the_threshold_never_does() -> None:
    ones = torch.ones(20, 1, 1)
    assert not run(LIF(), ones).any()  # h = 1 - 2^-t stays below
    assert run(LIF(), 2 * ones[:1]).all()  # h = 1 exactly
    assert run(IF(), ones).all()


def test_a_still_input_is_shown_at_every_timestep() -> None:
    neuron, x = LIF(), torch.rand(3, 4, 2, 2) * 4
    assert torch.equal(simulate(neuron, x, 5, still=True), simulate(neuron, x, 5))
    assert torch.equal(simulate(neuron, x, 5, chunk=2, still=True), simulate(neuron, x, 5))


def test_integer_spikes_are_counts_that_lower_the_membrane() -> None:
    frames = torch.tensor([[[0.4, 0.5, 2.6, 9.0, -3.0]], [[0.4, 0.0, 0.0, 0.0, 3.0]]])
    spikes = run(IntegerLIF(levels=4, tau=2.0), frames)
    assert spikes[0, 0].tolist() == [0, 1, 3, 4, 0]
    # membranes .4, -.5, -.4, 5, -3 are halved and the input added
    assert spikes[1, 0].tolist() == [1, 0, 0, 3, 2]
    assert run(IntegerLIF(levels=4, threshold=2.0), 2 * frames)[0].equal(spikes[0])


def test_gradient_of_integer_spikes_is_one_in_range_and_flows_through_time() -> None:
    frames = torch.tensor([[[0.7, 9.0, -1.0]], [[0.2, 0.2, 0.2]]], requires_grad=True)
    run(IntegerLIF(levels=4, tau=2.0), frames)[0].sum().backward()
    assert frames.grad is not None
    assert frames.grad[0, 0].tolist() == [1, 0, 0]
    frames.grad = None
    run(IntegerLIF(levels=4, tau=2.0), frames)[1].sum().backward()
    assert frames.grad[1, 0].tolist() == [1, 1, 0]  # membranes -.3, 5 and -1 are halved, and -.5 + .2 is out of range


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_integers_become_binary_spikes_that_drive_the_same_sum(levels: int) -> None:
    s = torch.randint(0, levels + 1, (5, 7)).float()
    spikes = binary_spikes(s, levels)
    assert spikes.shape == (levels, 5, 7)
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    weight = torch.randn(3, 7, dtype=torch.float64)
    accumulated = sum(weight @ spikes[d].double().T for d in range(levels))
    assert torch.allclose(accumulated, weight @ s.double().T)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
def test_a_surrogate_is_the_derivative_of_a_step_from_0_to_1(shape: str, alpha: float) -> None:
    surrogate = Surrogate(shape, alpha)
    u = torch.linspace(-200, 200, 4_000_001, dtype=torch.float64)
    values = surrogate.derivative(u)
    area = float(torch.trapezoid(torch.where(u.abs() > 1 / alpha, 0, values) if shape == "piecewise" else values, u))
    assert area == pytest.approx(1, abs=4e-3)
    assert torch.allclose(values, values.flip(0))
    x = torch.tensor([-0.1, 0.0, 0.2], dtype=torch.float64, requires_grad=True)
    fired = spike(x, surrogate)
    assert fired.tolist() == [0, 1, 1]
    fired.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, surrogate.derivative(x.detach()))


def test_the_sigmoid_surrogate_is_that_of_spikformer() -> None:
    u = torch.tensor(0.3, dtype=torch.float64)
    s = 1 / (1 + math.exp(-4 * 0.3))
    assert float(Surrogate().derivative(u)) == pytest.approx(4 * s * (1 - s))


def test_constants_that_make_no_neuron_are_refused() -> None:
    with pytest.raises(ValueError, match="above 1 timestep, got tau=1"):
        LIF(tau=1.0)
    with pytest.raises(ValueError, match="above 1 timestep, got tau=0"):
        PLIF(tau=0.5)
    with pytest.raises(ValueError, match="at least 1 level and tau above 1, got levels=0"):
        IntegerLIF(levels=0)
    with pytest.raises(ValueError, match="no surrogate 'step'; choose one of sigmoid, atan"):
        Surrogate("step")
    with pytest.raises(ValueError, match="steepness of a surrogate is positive, got 0"):
        Surrogate("atan", 0)


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_say_what_they_are(name: str) -> None:
    assert "threshold=0.5" in repr(NEURONS[name](threshold=0.5))
