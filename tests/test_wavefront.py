"""Wavefronts: networks whose layers begin one after another, beside the same neurons run timestep by timestep, as on a chip."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vit
from torch import Tensor, nn

from vit2snn.calibration.moving import Moving
from vit2snn.convert import RECIPES, Coded, Recipe, SpikingModel, load_model, to_spiking
from vit2snn.convert.batch_axis import check_times_aligned
from vit2snn.errors import ExportError, ModelError, RecipeError
from vit2snn.export import export
from vit2snn.measure import Meter, evaluate, replay
from vit2snn.spiking import Alphabet, CodedNeuron, Event, analog, eager, probing, simulate
from vit2snn.spiking.time import Neuron, Run, ahead
from vit2snn.storage import load, save
from vit2snn.tracing import depth
from vit2snn.tracing.depth import latencies
from vit2snn.tracing.wavefront import Alignment, seen_ahead, wave

T = 3
NAMES = ["ternary", "binary"]


def converted(name: str = "ternary", timesteps: int = T, **vit: Any) -> SpikingModel:
    torch.manual_seed(0)
    return to_spiking(make_vit(**vit), RECIPES[name].changed(timesteps=timesteps), torch.randn(32, 3, 16, 16))


class OnChip(CodedNeuron):
    """The same neuron in a network that is run timestep by timestep: silent until it begins, and after its last timestep."""

    begins: int

    def step(self, t: int, x: Tensor, state: Tensor | None, out: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.begins <= t < self.begins + T:
            return super().step(t, x, state, out)
        held = self.prior.expand(x.shape) if state is None else state
        self.tell(Event(t, x, [torch.zeros_like(x)], held, held))
        return held if out is None else out.copy_(held), held

    def tell(self, event: Event) -> None:
        from vit2snn.spiking.neuron import _probes

        if self in _probes.get():
            _probes.get()[self](event)

    def coded_step(self, t: int) -> Any:
        return super().coded_step(t - self.begins)

    def bias_at(self, t: int) -> Tensor | None:
        return super().bias_at(t) if 0 <= t < T else None


def on_chip(snn: SpikingModel, image: Tensor) -> tuple[SpikingModel, int]:
    """A copy whose neurons begin by the timestep, and how many timesteps it takes."""
    chip, begins = copy.deepcopy(snn), {}
    for name, neuron in chip.neurons().items():
        neuron.register_forward_hook(lambda m, x, out, name=name: begins.__setitem__(name, out.start - 1))
    with torch.no_grad():
        wave(chip.respond, image.expand(T, *image.shape))
    chip = copy.deepcopy(snn)
    for name, neuron in chip.neurons().items():
        neuron.__class__, neuron.begins, neuron.lag = OnChip, begins[name], 0
    return chip, max(begins.values()) + T


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_neurons_give_that_begin_one_after_another(name: str) -> None:
    snn, images = converted(name).double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    chip, timesteps = on_chip(snn, images)
    with torch.no_grad():
        expected = simulate(chip.network, images, timesteps)
        found = wave(snn.respond, images.expand(T, *images.shape))
    assert torch.allclose(found, expected[-T:], atol=1e-9)
    assert not torch.allclose(found[-1], found[-2], atol=1e-2)
    assert evaluate(snn, [(images, torch.zeros(2, dtype=torch.int64))], [T]).points[0].latency == timesteps
    assert timesteps == T + depth(snn.network, snn.input_size) - 1


@pytest.mark.slow
def test_what_is_counted_is_what_those_send_and_reach() -> None:
    snn, images = converted().double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    chip, timesteps = on_chip(snn, images)
    with torch.no_grad(), Meter(snn.network) as meter:
        snn(meter.show(images), T)
    with torch.no_grad(), Meter(chip.network) as expected:
        simulate(chip.network, expected.show(images), timesteps, chunk=1)
    for name, stream in expected.streams.items():
        assert meter.streams[name].spikes[-1] == stream.spikes.sum() > 0
    assert [tally.module for tally in meter.tallies] == [tally.module for tally in expected.tallies]
    for found, wanted in zip(meter.tallies, expected.tallies, strict=True):
        if wanted.kind in ("weighted", "product"):
            assert found.accumulates[-1] == wanted.accumulates.sum() > 0
            assert found.multiplies[-1] == wanted.multiplies.sum() == 0
        else:  # T times, however many timesteps a chip takes
            assert found.multiplies[-1] * timesteps == wanted.multiplies.sum() * T
        assert (found.macs, found.outputs, found.weights) == (wanted.macs, wanted.outputs, wanted.weights)


def test_the_constant_of_a_binary_neuron_is_charged_where_two_values_meet() -> None:
    snn, images = converted("binary"), torch.randn(2, 3, 16, 16)
    with torch.no_grad(), Meter(snn.network) as meter:
        snn(meter.show(images), T)
    charged = {tally.kind: float(tally.multiplies[-1]) for tally in meter.tallies if tally.kind in ("weighted", "product")}
    assert charged["weighted"] == 0 < charged["product"]


@pytest.mark.parametrize("name", NAMES)
def test_a_timestep_is_a_run_of_so_many(name: str) -> None:
    snn, images = converted(name), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        readout = snn(images)
        assert readout.shape[:2] == (T, 3)
        for t in range(T):
            assert torch.equal(readout[t], wave(snn.respond, images.expand(t + 1, *images.shape))[-1])
        assert torch.equal(snn(images, chunk=1), readout)
        assert torch.allclose(torch.cat([snn(image[None]) for image in images], 1), readout, atol=1e-5)
        frames = snn(images.expand(T, *images.shape))
    assert torch.equal(frames, readout)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_compute_what_torch_does(name: str) -> None:
    snn, images = converted(name), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        fast = snn(images)
        with eager():
            slow = snn(images)
    assert torch.allclose(fast, slow, atol=1e-4)


@pytest.mark.slow
def test_it_beats_stepwise_neurons() -> None:
    lost = {}
    images = torch.randn(16, 3, 16, 16)
    for name in ("ternary", "ternary-stepwise", "ternary-synchronous"):
        snn = converted(name, 4, depth=4)
        with torch.no_grad():
            ann = snn.ann(images)
            lost[name] = float((snn(images)[-1] - ann).norm() / ann.norm())
    assert lost["ternary"] < 0.7 * lost["ternary-stepwise"]
    assert lost["ternary"] < 3 * lost["ternary-synchronous"]


@pytest.mark.slow
def test_long_runs_wait_longer_and_are_better() -> None:
    lost, images = {}, torch.randn(16, 3, 16, 16)
    for timesteps, lag in ((8, 1), (16, 2)):
        snn = converted("binary", timesteps, depth=4)
        assert {neuron.lag for neuron in snn.neurons().values()} == {snn.recipe.lag} == {lag}
        in_a_row = depth(snn.network, (3, 16, 16))
        assert latencies(snn.network, (3, 16, 16))(timesteps) == timesteps + lag * (in_a_row - 1)
        with torch.no_grad():
            ann = snn.ann(images)
            lost[timesteps] = float((snn(images)[-1] - ann).norm() / ann.norm())
    assert lost[16] < 0.5 * lost[8]


@pytest.mark.parametrize("name", NAMES)
def test_it_comes_back_from_disk_and_in_half_precision(name: str, tmp_path: Path) -> None:
    snn, images = converted(name, 8), torch.randn(2, 3, 16, 16)
    save(snn, tmp_path / "out")
    with torch.no_grad():
        expected, again = snn(images), load(tmp_path / "out")
        assert torch.equal(again(images), expected)
        half = snn.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert float((half[-1].float() - expected[-1]).norm() / expected[-1].norm()) < {"ternary": 0.3, "binary": 0.6}[name]


def test_gradients_reach_all_weights() -> None:
    snn = converted()
    snn(torch.randn(2, 3, 16, 16))[-1].square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in snn.parameters())


class Toy(nn.Module):
    """A shortcut around a neuron, in a layout in which images are along the ``axis``."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.neuron = CodedNeuron(Alphabet(1), lag=1)
        self.neuron.threshold, self.neuron.prior = torch.ones(1, 1), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        turned = x.transpose(0, self.axis)
        return (turned + self.neuron(x).transpose(0, self.axis)).transpose(0, self.axis)


def test_signals_that_cannot_be_aligned_are_refused() -> None:
    image = torch.randn(1, 4, 6)
    check_times_aligned(Toy(0), image)
    for axis in (1, 2):
        with pytest.raises(ModelError, match="cannot be aligned"):
            check_times_aligned(Toy(axis), image)
    with pytest.raises(ModelError, match="first axis is not that of images"):
        check_times_aligned(Toy(1), torch.randn(1, 3, 6))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x, y: x + y, (3, 4)),
        (lambda x, y: torch.cat([x, y], 1), (3, 4)),
        (lambda x, y: x.add_(y), (3, 4)),
        (lambda x, y: x.__iadd__(y), (3, 4)),
        (lambda x, y: y.clone().copy_(x) + y, (3, 4)),
        (lambda x, y: torch.where(y > 0, x, y), (3,)),
    ],
)
def test_calls_of_signals_that_begin_at_different_times(change: Any, expected: tuple[int, ...]) -> None:
    early, late = torch.arange(1.0, 4.0).unsqueeze(1), torch.tensor([[2.0], [3.0], [4.0]])
    early.start, late.start = 0, 1  # type: ignore[attr-defined]
    with Alignment(3):
        made = change(early, late)
    assert made.start == 1
    shown = change(ahead(torch.arange(1.0, 4.0), 1).unsqueeze(1), torch.tensor([[2.0], [3.0], [4.0]]))
    assert torch.equal(made, shown)


def test_parts_that_are_written_are_aligned() -> None:
    early, late = torch.arange(1.0, 7.0).reshape(3, 2), torch.tensor([[2.0], [3.0], [4.0]])
    early.start, late.start = 0, 1  # type: ignore[attr-defined]
    with Alignment(3):
        early[:, :1] = late
    assert early.tolist() == [[2.0, 4.0], [3.0, 6.0], [4.0, 6.0]]
    assert early.start == 1  # type: ignore[attr-defined]
    assert seen_ahead(torch.arange(4.0), 1, 2).tolist() == [2.0, 3.0, 2.0, 3.0]


def test_neurons_that_lag_are_not_run_where_nothing_is_aligned() -> None:
    snn, images = converted(), torch.randn(2, 3, 16, 16)
    with pytest.raises(RuntimeError, match="run by SpikingModel"):
        simulate(snn.network, images, 2)
    with torch.no_grad(), analog():
        assert torch.allclose(simulate(snn.network, images, 2)[1], snn.ann(images), atol=1e-5)


@pytest.mark.parametrize("alphabet", [Alphabet(1), Alphabet(1, signed=False, centred=True), Alphabet(4)])
@torch.no_grad()
def test_the_best_thresholds_of_moving_targets(alphabet: Alphabet) -> None:
    settled = torch.randn(2, 200) * torch.tensor([[1.0], [5.0]])
    targets = torch.stack([settled + torch.randn(2, 200) * 0.4**t for t in range(T)])
    targets[-1] = settled
    moving = Moving(CodedNeuron(alphabet, per_channel=True), T)
    moving.update(targets)
    moving.update(targets)
    found = moving.best()
    assert found.shape == (T, 2)

    def error(channel: int, thresholds: Tensor) -> float:
        neuron = CodedNeuron(alphabet)
        neuron.threshold, neuron.prior = thresholds.float().unsqueeze(1), torch.zeros(())
        neuron.bias = alphabet.offset(neuron.threshold) if alphabet.centred else torch.empty(0)
        decoded = neuron.advance(targets[:, channel, :, None], None, Run(T))[0]
        return float((decoded[-1, :, 0] - settled[channel]).square().sum())

    for channel in range(2):
        least = min(
            error(channel, torch.tensor([1.0, early, early * late]) * first * (1 + 4 * channel))
            for first in (0.5 * 1.25**k for k in range(12))
            for early in (0.25, 0.35, 0.5, 0.7, 0.9)
            for late in (0.25, 0.35, 0.5, 0.7)
            if late <= early
        )
        # Its grid is another one, and the largest values count twice among the samples.
        assert error(channel, found[:, channel]) < 1.3 * least


def test_a_channel_that_is_silent_at_first() -> None:
    moving = Moving(CodedNeuron(Alphabet(1), per_channel=True), 1)
    targets = torch.randn(1, 2, 50)
    moving.update(targets * torch.tensor([[[1.0], [0.0]]]))
    moving.update(targets)
    assert 0.5 < moving.best()[0, 1] < 4
    never = Moving(CodedNeuron(Alphabet(1)), 1)
    never.update(torch.zeros(1, 1, 50))
    assert bool((never.best() > 0).all())


def test_centred_digits_are_the_bits_of_a_number() -> None:
    alphabet, steps = Alphabet(1, signed=False, centred=True), 8
    neuron = CodedNeuron(alphabet)
    neuron.threshold = torch.tensor([[0.5**t] for t in range(steps)])
    neuron.prior, neuron.bias = torch.zeros(()), -neuron.threshold / 2
    x = torch.linspace(-0.99, 0.99, 50).unsqueeze(1)
    sent: list[Tensor] = []
    with torch.no_grad(), probing(neuron, {"": lambda event: sent.append(event.spikes[0])}):
        decoded = neuron.advance(x.expand(steps, -1, -1), None, Run(steps))[0]
    assert float((decoded[-1] - x).abs().max()) <= 1.01 * 0.5**steps
    assert {float(value) for spikes in sent for value in spikes.unique()} == {0.0, *(0.5**t for t in range(steps))}
    assert isinstance(neuron, Neuron)
    u = torch.tensor([-2.0, -0.2, 0.2, 2.0], requires_grad=True)
    with eager():
        neuron.coded_step(0).reference(u.unsqueeze(1), None)[0].sum().backward()
    assert u.grad is not None and u.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"schedule": "wavefront", "coding": "rate"}, "spikes.coding' is 'rate', and with schedule 'wavefront'"),
        ({"schedule": "wavefront", "thresholds": "static"}, "spikes.thresholds"),
        ({"schedule": "wavefront", "price": 1e-8}, "spikes.price"),
        ({"schedule": "wavefront", "observer": "max"}, "spikes.observer"),
        ({"centred": True, "levels": 1, "signed": False}, "spikes.centred' is true, .* 'stepwise'"),
        ({"centred": True, "schedule": "wavefront"}, "spikes.centred"),
    ],
)
def test_recipes_that_contradict_themselves(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        Coded(**fields)
    with pytest.raises(RecipeError, match="max_energy"):
        Recipe(spikes=RECIPES["ternary"].spikes, max_energy=0.5)


def test_what_has_no_meaning_for_it_is_refused(tmp_path: Path) -> None:
    snn, images = converted(), torch.randn(2, 3, 16, 16)
    assert snn.exits is None
    with pytest.raises(ModelError, match="early exits"):
        snn.exit_limits(0.9)
    for step in (True, False):
        with pytest.raises(ExportError, match=r"wait for each other|begin one after another"):
            export(snn, tmp_path / "graph", step=step)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="begin one after another"):
        replay(snn, images)


@pytest.mark.slow
def test_the_demo_keeps_its_accuracy(demo_sample: tuple[Tensor, Tensor, Tensor]) -> None:
    calibration, images, labels = demo_sample
    agreed = {}
    for name, timesteps in (("ternary", 4), ("ternary-stepwise", 4), ("binary", 8)):
        snn = to_spiking(load_model("demo"), RECIPES[name].changed(timesteps=timesteps), calibration[:48])
        (point,) = evaluate(snn, [(images[:100], labels[:100])], [timesteps]).points
        agreed[name] = point.agreement
    assert agreed["ternary"] >= 92
    assert agreed["ternary"] > agreed["ternary-stepwise"] + 3
    assert agreed["binary"] >= 88
