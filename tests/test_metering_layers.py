"""The meter on single layers, beside a count of every spike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bruteforce import (
    Sends,
    by_convolution,
    by_linear,
    dense_convolution,
    dense_linear,
    each,
    firing,
    flat,
    metered,
    spent,
    spikes,
)  # fmt: skip
from torch import Tensor, nn
from torch.nn import functional as F

from vit2snn.measure import Meter
from vit2snn.measure.charges import FUNCTION_MACS, SHIFT_ACCUMULATES
from vit2snn.spiking import IF, Hadamard, IntegerLIF, ShiftGELU, ShiftLayerNorm, ShiftSoftmax, simulate

T, B = 3, 2
SIGNALS: dict[str, Callable[..., Tensor]] = {
    "binary": lambda *size: (torch.rand(size) < 0.3).float(),
    "integer": lambda *size: torch.randint(0, 5, size).float(),
    "ternary": lambda *size: torch.randint(-1, 2, size).float(),
    "signed integer": lambda *size: torch.randint(-3, 4, size).float(),
}
CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "padded": (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 7)),
    "strided": (nn.Conv2d(3, 4, 2, stride=2), (3, 6, 8)),
    "padded and strided, odd": (nn.Conv2d(2, 5, 3, stride=2, padding=1), (2, 7, 9)),
    "padded and strided, even": (nn.Conv2d(2, 5, 3, stride=2, padding=1), (2, 8, 6)),
    "strided beyond the kernel": (nn.Conv2d(2, 3, 2, stride=3), (2, 8, 9)),
    "strided unevenly": (nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(0, 1)), (2, 5, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 4)),
    "dilated": (nn.Conv2d(2, 3, 3, padding=2, dilation=2), (2, 7, 6)),
    "dilated and strided": (nn.Conv2d(2, 3, 3, padding=1, dilation=3, stride=2), (2, 8, 9)),
    "1x1": (nn.Conv2d(5, 3, 1), (5, 4, 4)),
    "patches": (nn.Conv2d(3, 8, 4, stride=4), (3, 8, 8)),
}


@pytest.mark.parametrize("kind", SIGNALS)
def test_each_spike_into_a_linear_layer_is_added_to_all_its_outputs(kind: str) -> None:
    linear, frames = nn.Linear(6, 5), SIGNALS[kind](T, B, 1, 4, 6)
    meter = metered(nn.Sequential(Sends(), linear), frames)
    counts = each(lambda rows: by_linear(linear, rows), frames)
    assert spent(meter) == [[(count, 0) for count in images] for images in counts]
    (tally,) = meter.tallies
    assert tally.accumulates.tolist() == [sum(images) for images in counts]
    assert tally.operands[0].spikes.tolist() == [sum(images) for images in each(spikes, frames)]
    assert (tally.kind, tally.macs, tally.weights, tally.outputs) == ("weighted", 4 * 6 * 5, 6 * 5 + 5, 20)
    assert meter.images == B


def test_numbers_into_a_linear_layer_are_multiplied_zeros_included() -> None:
    linear, frames = nn.Linear(6, 5), torch.randn(T, B, 1, 4, 6) * SIGNALS["binary"](T, B, 1, 4, 6)
    meter = metered(nn.Sequential(Sends(), linear), frames)
    assert spent(meter) == [[(0, count) for count in images] for images in each(lambda x: dense_linear(linear, x), frames)]
    assert meter.tallies[0].operands[0].spikes.tolist() == [sum(images) for images in each(firing, frames)]


@pytest.mark.parametrize("factor", [0.5, 0.1, -2.7, 1e-4])
def test_a_constant_factor_of_spikes_is_no_multiplication(factor: float) -> None:
    linear, frames = nn.Linear(6, 5), SIGNALS["ternary"](T, B, 1, 4, 6)
    meter = metered(nn.Sequential(Sends(), linear), frames * factor)
    assert spent(meter) == [[(count, 0) for count in images] for images in each(lambda x: by_linear(linear, x), frames)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_each_spike_into_a_convolution_is_added_to_the_outputs_that_read_it(name: str, kind: str, dtype: torch.dtype) -> None:
    conv, size = CONVOLUTIONS[name]
    frames = SIGNALS[kind](T, B, *size).to(dtype)
    meter = metered(nn.Sequential(Sends(), conv).to(dtype), frames)
    assert spent(meter) == [[(count, 0) for count in images] for images in each(lambda x: by_convolution(conv, x), frames)]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_numbers_multiplies_at_every_offset_of_its_kernel(name: str) -> None:
    conv, size = CONVOLUTIONS[name]
    conv, frames = conv.float(), torch.randn(T, B, *size)
    meter = metered(nn.Sequential(Sends(), conv), frames)
    assert spent(meter) == [[(0, count) for count in images] for images in each(lambda x: dense_convolution(conv, x), frames)]


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("arguments", [{"padding": 2}, {"stride": 2}, {"padding": 4, "dilation": 2, "groups": 3}])
def test_a_convolution_along_one_axis_reaches_less_at_the_borders(arguments: dict[str, int], kind: str) -> None:
    conv, frames = nn.Conv1d(3, 6, 5, **arguments), SIGNALS[kind](T, B, 3, 1, 9)
    meter = metered(nn.Sequential(Sends(), nn.Flatten(2), conv), frames)
    counts = each(lambda image: by_convolution(conv, [channel[0] for channel in image]), frames)
    assert spent(meter) == [[(count, 0) for count in images] for images in counts]


def test_one_spike_at_a_border_and_one_inside() -> None:
    conv, frames = nn.Conv2d(1, 2, 3, padding=1), torch.zeros(3, 1, 1, 5, 5)
    for t, (y, x) in enumerate([(0, 0), (0, 2), (2, 2)]):
        frames[t, 0, 0, y, x] = 1
    assert spent(metered(nn.Sequential(Sends(), conv), frames)) == [[(2 * 4, 0)], [(2 * 6, 0)], [(2 * 9, 0)]]


def test_neurons_are_followed_through_views() -> None:
    linear, frames = nn.Linear(4, 3), torch.randn(T, B, 4, 3, 2)
    network = nn.Sequential(IntegerLIF(threshold=0.3), nn.Flatten(2), nn.Dropout(), Transposed(), linear).eval()
    meter = metered(network, frames)
    sent = simulate(network[0], frames, T)
    assert whole_and_several(sent)
    assert spent(meter) == [[(count, 0) for count in images] for images in each(lambda x: by_linear(linear, x), sent)]
    assert meter.streams["0"].spikes.tolist() == [sum(images) for images in each(spikes, sent)]


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def whole_and_several(sent: Tensor) -> bool:
    return torch.equal(sent, sent.round()) and len(sent.unique()) > 2


class Calls(nn.Module):
    """A function, as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("module", "values"),
    [
        (nn.LayerNorm(6), 4 * 6),
        (nn.Softmax(-1), 4 * 6),
        (nn.GELU(), 4 * 6),
        (nn.Sigmoid(), 4 * 6),
        (Calls(lambda x: F.softmax(x @ x.transpose(-1, -2), -1)), 4 * 4),
    ],
)
def test_a_nonlinear_function_is_charged_by_the_value(module: nn.Module, values: int) -> None:
    meter = metered(nn.Sequential(Sends(), module), torch.randn(T, B, 1, 4, 6))
    function = meter.tallies[-1]
    assert (function.kind, function.outputs) == ("function", values)
    assert function.multiplies.tolist() == [B * FUNCTION_MACS * values] * T
    assert function.accumulates.tolist() == [0] * T
    assert FUNCTION_MACS == 5


def test_norms_without_statistics_of_their_own_scalings_and_shortcuts_cost_nothing() -> None:
    batchnorm, linear = nn.BatchNorm2d(1).eval(), nn.Linear(6, 6, bias=False)
    network = nn.Sequential(Sends(), batchnorm, Calls(lambda x: x + 3 * x), Calls(lambda x: x / 7 - 1))
    assert metered(network, torch.randn(T, B, 1, 4, 6)).tallies == []
    frames = SIGNALS["binary"](T, B, 1, 4, 6)
    scaled = nn.Sequential(Sends(), linear, batchnorm, Calls(lambda x: x * torch.ones(6)))
    assert spent(metered(scaled, frames)) == spent(metered(nn.Sequential(Sends(), linear), frames))


@pytest.mark.parametrize(("channels", "additions"), [(32, 5), (24, 3), (6, 1), (7, 0)])
def test_a_rotation_takes_the_additions_of_a_butterfly(channels: int, additions: int) -> None:
    meter = metered(nn.Sequential(Sends(), Hadamard(channels)), torch.randn(T, B, 1, 4, channels))
    assert spent(meter) == [[(4 * channels * additions, 0)] * B] * T
    assert [tally.kind for tally in meter.tallies] == ["rotation"]


@pytest.mark.parametrize("module", [ShiftLayerNorm(6), ShiftSoftmax(), ShiftGELU()])
def test_a_function_of_shifts_is_charged_additions(module: nn.Module) -> None:
    meter = metered(nn.Sequential(Sends(), module), torch.randn(T, B, 1, 4, 6))
    assert spent(meter) == [[(SHIFT_ACCUMULATES * 24, 0)] * B] * T


@pytest.mark.parametrize("kernel", [(2, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("kind", ["binary", "integer"])
def test_a_maximum_costs_a_comparison_for_each_spike_or_for_each_number(kernel: tuple[int, int, int], kind: str) -> None:
    pool, frames = nn.MaxPool2d(*kernel), SIGNALS[kind](T, B, 3, 6, 6)
    assert spent(metered(nn.Sequential(Sends(), pool), frames)) == [[(n, 0) for n in row] for row in each(firing, frames)]
    numbers = metered(nn.Sequential(Sends(), pool), torch.randn(T, B, 3, 6, 6))
    assert spent(numbers) == [[(3 * 6 * 6, 0)] * B] * T
    assert [tally.kind for tally in numbers.tallies] == ["comparison"]


@pytest.mark.parametrize("reduce", [lambda x: x.mean((2, 3)), lambda x: x.sum((-2, -1)), lambda x: x.flatten(2).mean(2)])
def test_a_mean_of_spikes_is_read_as_a_sum_of_them(reduce: Callable[[Tensor], Tensor]) -> None:
    linear, frames = nn.Linear(3, 5), SIGNALS["integer"](T, B, 3, 4, 4)
    meter = metered(nn.Sequential(Sends(), Calls(reduce), linear), frames)
    counts = each(lambda image: spikes(image) + by_linear(linear, [[sum(flat(channel)) for channel in image]]), frames)
    assert spent(meter) == [[(count, 0) for count in images] for images in counts]
    assert [tally.kind for tally in meter.tallies] == ["reduction", "weighted"]


def test_a_sum_of_numbers_is_not_counted() -> None:
    assert metered(nn.Sequential(Sends(), Calls(lambda x: x.mean((2, 3)))), torch.randn(T, B, 3, 4, 4)).tallies == []


def test_a_weight_that_was_repeated_for_every_image_is_met_by_each_once() -> None:
    latent, frames = nn.Parameter(torch.randn(1, 5, 6)), SIGNALS["binary"](T, B, 1, 4, 6)

    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent = latent

        def forward(self, x: Tensor) -> Tensor:
            return self.latent.expand(len(x), -1, -1) @ x.flatten(1, 2).transpose(1, 2)

    meter = metered(nn.Sequential(Sends(), Pools()), frames)
    counts = each(lambda rows: by_linear(nn.Linear(6, 5), rows), frames)
    assert spent(meter) == [[(count, 0) for count in images] for images in counts]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_matrix_of_weights_may_stand_on_either_side(axis: int) -> None:
    weight, frames = torch.randn(6, 5), SIGNALS["ternary"](T, B, 1, 4, 6)
    function: Any = (lambda x: x @ weight) if axis else (lambda x: weight.T @ x.transpose(-1, -2))
    meter = metered(nn.Sequential(Sends(), Calls(function)), frames)
    counts = each(lambda rows: by_linear(nn.Linear(6, 5), rows), frames)
    assert spent(meter) == [[(count, 0) for count in images] for images in counts]


@pytest.mark.parametrize("kind", [*SIGNALS, "analog"])
def test_counts_of_an_image_depend_on_no_other_image_and_no_chunk(kind: str) -> None:
    frames = SIGNALS[kind](T, 4, 2, 6, 6) if kind in SIGNALS else torch.randn(T, 4, 2, 6, 6)
    network = nn.Sequential(Sends(), nn.Conv2d(2, 3, 3, padding=1), IF(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 5))
    whole = metered(network, frames)
    alone = [metered(network, frames[:, i : i + 1]) for i in range(4)]
    assert torch.equal(torch.cat([meter.spent() for meter in alone], 1), whole.spent())
    for chunk in (1, 2):
        other = metered(network, frames, chunk)
        assert torch.equal(other.spent(), whole.spent())
        assert [tally.accumulates.tolist() for tally in other.tallies] == [t.accumulates.tolist() for t in whole.tallies]


def test_a_dark_image_among_numbers_is_counted_as_numbers() -> None:
    """What is a spike is judged on all that a layer gets, so such an image costs nothing only where it is alone."""
    network, frames = nn.Sequential(Sends(), nn.Linear(6, 5)), torch.randn(1, 2, 1, 4, 6)
    frames[0, 1] = 0
    assert spent(metered(network, frames)) == [[(0, 4 * 6 * 5)] * 2]
    assert spent(metered(network, frames[:, 1:])) == [[(0, 0)]]


def test_several_runs_add_up() -> None:
    network, frames = nn.Sequential(Sends(), nn.Linear(6, 5)), SIGNALS["binary"](T, B, 1, 4, 6)
    with torch.no_grad(), Meter(network) as meter:
        for images in (frames, frames[:, :1]):
            simulate(network, meter.show(images), T)
    assert meter.images == B + 1
    counts = each(lambda rows: by_linear(network[1], rows), frames)
    assert meter.tallies[0].accumulates.tolist() == [sum(images) + images[0] for images in counts]
    assert spent(meter) == [[(images[0], 0)] for images in counts]


def test_spikes_that_are_changed_in_place_are_looked_at_again() -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            before = self.first(x)
            x += 0.25
            x[:, 0] = 0.5
            return before.sum() + self.second(x)

    network, x = Changes(), torch.tensor([[1.0, 0.0, 1.0]])
    with torch.no_grad(), Meter(network) as meter:
        network(meter.show(x))
    assert [(float(t.accumulates.sum()), float(t.multiplies.sum())) for t in meter.tallies if t.macs] == [(4, 0), (0, 12)]


def test_inference_mode_makes_no_difference() -> None:
    network, frames = nn.Sequential(Sends(), nn.Linear(6, 5)), SIGNALS["binary"](T, B, 1, 4, 6)
    counts = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), Meter(network) as meter:
            simulate(network, meter.show(frames.clone()), T)
        counts.append(spent(meter))
    assert counts[0] == counts[1]
