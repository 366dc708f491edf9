"""The meter on spiking modules and on whole models of the zoo, beside a count of what their parts were heard to send."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from bruteforce import (
    Sends,
    by_convolution,
    check,
    counted,
    either,
    flat,
    flipped,
    metered,
    spent,
    spikes,
)
from conftest import enliven
from torch import Tensor, nn

from vit2snn.measure import Meter
from vit2snn.spiking import (
    LIF,
    ExpertMixtureAttention,
    ExpertMixturePerceptron,
    GridConv2d,
    IntegerLIF,
    MembraneShortcut,
    QKChannelAttention,
    QKMixedAttention,
    QKTokenAttention,
    SEWShortcut,
    SpikeDrivenSelfAttention,
    SpikingMLP,
    SpikingSelfAttention,
    TemporalInteraction,
    TernaryLIF,
    simulate,
)

T, B = 3, 2


def lively(module: nn.Module, frames: Tensor) -> nn.Sequential:
    network = nn.Sequential(Sends(), module)
    return enliven(network, frames.flatten(0, 1))  # type: ignore[return-value]


MODULES: dict[str, Callable[[Any], nn.Module]] = {
    "SSA": lambda neuron: SpikingSelfAttention(8, 2, neuron),
    "QKTA": lambda neuron: QKTokenAttention(8, 2, neuron),
    "QKCA": lambda neuron: QKChannelAttention(8, 2, neuron),
    "QKMA": lambda neuron: QKMixedAttention(8, 2, neuron),
    "SDSA": lambda neuron: SpikeDrivenSelfAttention(8, 2, neuron),
    "SDSA, pooled": lambda neuron: SpikeDrivenSelfAttention(8, 2, neuron, pooled=True),
    "EMSA": lambda neuron: ExpertMixtureAttention(8, neuron, experts=3, expert_dim=4),
    "EMSA, small": lambda neuron: ExpertMixtureAttention(8, neuron, experts=3, expert_dim=10, value_dim=5),
    "EMSP": lambda neuron: ExpertMixturePerceptron(8, 12, neuron),
    "MLP": lambda neuron: SpikingMLP(8, 12, neuron),
    "SEW": lambda neuron: nn.Sequential(
        SEWShortcut(SpikingMLP(8, 12, neuron), neuron), SEWShortcut(SpikingSelfAttention(8, 2, neuron), neuron)
    ),
    "membrane": lambda neuron: nn.Sequential(
        MembraneShortcut(SpikingSelfAttention(8, 2, neuron), neuron), MembraneShortcut(SpikingMLP(8, 12, neuron), neuron)
    ),
}


@pytest.mark.parametrize("tokens", [(1, 3), (3, 3)])
@pytest.mark.parametrize("name", MODULES)
def test_every_operation_of_a_spiking_module(name: str, tokens: tuple[int, int]) -> None:
    frames = torch.randint(0, 3, (T, B, 8, *tokens)).float()
    network = lively(MODULES[name](LIF), frames)
    counts = counted(network, B, lambda: simulate(network, frames, T, 1))
    for chunk in (None, 1, 2):
        check(metered_as_it_is(network, frames, chunk), counts)


@torch.no_grad()
def metered_as_it_is(network: nn.Sequential, frames: Tensor, chunk: int | None) -> Meter:
    with Meter(network) as meter:
        simulate(network, meter.show(frames), T, chunk)
    return meter


@pytest.mark.parametrize("attention", [SpikingSelfAttention, QKTokenAttention, SpikeDrivenSelfAttention])
def test_temporal_interaction_convolves_what_was_sent_a_timestep_before(attention: Any) -> None:
    frames = torch.randint(0, 2, (T, B, 8, 2, 3)).float()
    network = lively(attention(8, 2, LIF, interaction=TemporalInteraction(6, thresholds=(0.01, 0.01))), frames)
    network[1].interaction.conv.weight.data.abs_()
    counts = counted(network, B, lambda: simulate(network, frames, T, 1))
    (convolution,) = counts["1.interaction.conv"]
    assert convolution[0] == [(0, 0)] * B and all(count > 0 for images in convolution[1:] for count, _ in images)
    for chunk in (None, 1, 2):
        check(metered_as_it_is(network, frames, chunk), counts)


@pytest.mark.parametrize("neuron", [partial(IntegerLIF, threshold=0.5), TernaryLIF])
@pytest.mark.parametrize("name", ["SSA", "MLP", "membrane"])
def test_neurons_that_send_integers_or_two_signs(name: str, neuron: Any) -> None:
    frames = torch.randint(0, 3, (T, B, 8, 2, 3)).float()
    network = lively(MODULES[name](neuron), frames)
    counts = counted(network, B, lambda: simulate(network, frames, T, 1))
    check(metered_as_it_is(network, frames, None), counts)


class Multiplies(nn.Module):
    """Two signals that come in one."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(*x.unbind(1))


FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Any, Any], tuple[int, int]]]] = {
    "@": (lambda a, b: a @ b.transpose(-1, -2), lambda a, b: either(a, flipped(b))),
    "transposed @": (lambda a, b: a.transpose(-1, -2) @ b, lambda a, b: either(flipped(a), b)),
    "bmm": (lambda a, b: torch.bmm(a, b.mT), lambda a, b: either(a, flipped(b))),
    "einsum": (lambda a, b: torch.einsum("bik,bjk->bij", a, b), lambda a, b: either(a, flipped(b))),
    "*": (lambda a, b: a * b, lambda a, b: tuple(sum(map(_times, *pair)) for pair in ((flat(a), flat(b)), (flat(b), flat(a))))),
}


def _times(one: float, other: float) -> int:
    return int(abs(one)) if other else 0


@pytest.mark.parametrize("highest", [(1, 1), (1, 4), (4, 1), (3, 4)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_where_integers_meet_the_spikes_of_one_add_what_the_other_holds(name: str, highest: tuple[int, int]) -> None:
    function, by_hand = FUNCTIONS[name]
    frames = torch.stack([torch.randint(-high, high + 1, (T, 3, 4, 5)).float() for high in highest], 2)
    frames[:, 1] = frames[:, 1].clamp(-1, 2)
    network = nn.Sequential(Sends(), Multiplies(function))
    counts = [[(min(by_hand(*pair)), 0) for pair in images] for images in frames.tolist()]
    assert spent(metered(network, frames)) == counts
    alone = [spent(metered(network, frames[:, i : i + 1])) for i in range(3)]
    assert [[run[t][0] for run in alone] for t in range(T)] == counts


def test_a_number_makes_multiplications_of_a_whole_product() -> None:
    frames = torch.stack([torch.randn(T, B, 4, 5), torch.randint(0, 2, (T, B, 4, 5)).float()], 2)
    meter = metered(nn.Sequential(Sends(), Multiplies(FUNCTIONS["@"][0])), frames)
    assert spent(meter) == [[(0, 4 * 5 * 4)] * B] * T


def test_tokens_on_a_grid_and_tokens_apart_from_it() -> None:
    conv = GridConv2d(4, 3, (2, 3), prefix=2, groups=4)
    frames = torch.randint(0, 3, (T, B, 4, 1, 8)).float()
    inner = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    counts = [
        [
            (by_convolution(inner, image[:, 0, 2:].unflatten(1, (2, 3)).tolist()) + spikes(image[:, 0, :2].tolist()), 0)
            for image in images
        ]
        for images in frames
    ]
    assert spent(metered(nn.Sequential(Sends(), conv), frames)) == counts


def test_masks_are_binary_spikes() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0) * x

    network, x = Masked(), torch.tensor([[1.0, -2.0, 0.5, 3.25]])
    with Meter(network, observing=True) as meter:
        network(meter.show(x))
    (tally,) = meter.tallies
    assert [operand.kind for operand in tally.operands] == ["binary", "analog"]
    assert tally.multiplies.tolist() == [4]
