from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from vit2snn.spiking import IF, LIF, Neuron, Run, Surrogate


def gradients(neuron: Any, advance: Any, frames: Tensor, v: Tensor, weights: Tensor) -> list[Tensor]:
    frames, v = frames.clone().requires_grad_(), v.clone().requires_grad_()
    spikes, last = advance(neuron, frames, v, Run(last=False))
    ((spikes * weights[:-1]).sum() + (last * weights[-1]).sum()).backward()
    return [spikes.detach(), last.detach(), frames.grad, v.grad]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("detach", "v_reset", "leaky"), list(itertools.product([True, False], [None, 0.0], [None, True, False]))
)
def test_gradients_through_time_are_those_of_automatic_differentiation(
    detach: bool, v_reset: float | None, leaky: bool | None
) -> None:
    constants: dict[str, Any] = dict(threshold=0.7, detach_reset=detach, v_reset=v_reset, surrogate=Surrogate("atan", 2.0))
    neuron = IF(**constants) if leaky is None else LIF(tau=3.0, decay_input=leaky, **constants)
    generator = torch.Generator().manual_seed(0)
    frames, weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 40), (6, 40)))
    frames = 3 * frames
    v = torch.randn(40, generator=generator, dtype=torch.float64)
    fused = gradients(neuron, type(neuron).advance, frames, v, weights)
    stepped = gradients(neuron, Neuron.advance, frames, v, weights)
    assert 0.1 < fused[0].mean() < 0.9
    for got, expected in zip(fused, stepped, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grad", [True, False])
def test_spikes_lie_in_memory_as_their_inputs_do(grad: bool) -> None:
    frames = torch.randn(2, 3, 5, 7).transpose(2, 3)
    with torch.set_grad_enabled(grad):
        spikes, _ = IF().advance(frames, None, Run())
    assert spikes.stride() == frames.stride()
    expanded, _ = IF().advance(frames[0].expand(4, *frames[0].shape), None, Run())
    repeated, _ = IF().advance(frames[0].repeat(4, 1, 1, 1), None, Run())
    assert torch.equal(expanded, repeated)


def test_the_state_before_is_left_as_it_is() -> None:
    v = torch.ones(3)
    frames = torch.ones(2, 3, requires_grad=True)
    IF().advance(frames, v, Run())
    assert torch.equal(v, torch.ones(3))
