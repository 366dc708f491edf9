from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vit2snn.spiking import Alphabet, CodedNeuron, Coding, Event, Run, analog, present_run, probing, running, simulate
from vit2snn.spiking.coding import emit


def neuron(alphabet: Alphabet | None, coding: Coding, threshold: float = 1.0, burst: int = 1) -> CodedNeuron:
    made = CodedNeuron(alphabet, coding, spikes_per_step=burst)
    made.threshold, made.prior, made.bias = torch.tensor([threshold]), torch.zeros(()), torch.empty(0)
    return made


def run(made: CodedNeuron, x: Tensor, timesteps: int, chunk: int | None = None) -> Tensor:
    return simulate(made, x, timesteps, chunk)


def test_binary_rate_coding_is_the_soft_reset_integrate_and_fire_neuron() -> None:
    current, threshold, T = torch.tensor([[0.3, 0.77, 1.0, -0.4, 0.0]]), 0.5, 20
    decoded = run(neuron(Alphabet(1, signed=False), Coding.RATE, threshold), current, T)
    v, total = torch.full_like(current, threshold / 2), torch.zeros_like(current)  # fires at v >= θ from θ/2: rounding
    for t in range(T):
        v = v + current
        spike = threshold * (v >= threshold)
        v, total = v - spike, total + spike
        assert torch.allclose(decoded[t], total / (t + 1), atol=1e-6)


def test_differential_coding_sends_changes_only() -> None:
    made, seen = neuron(Alphabet(8), Coding.DIFFERENTIAL), []
    with probing(nn.ModuleDict({"n": made}), {"n": seen.append}):
        decoded = run(made, torch.tensor([[1.0, 0.5, 0.7]]), 6)
    assert decoded[0, 0].tolist() == [1.0, 0.5, 0.5]
    assert [int(event.spikes[0].count_nonzero()) for event in seen] == [3, 1, 1, 1, 0, 0]
    assert torch.allclose(decoded[-1], torch.tensor([[1.0, 0.5, 0.7]]), atol=1 / 128)


@pytest.mark.parametrize("coding", list(Coding))
@pytest.mark.parametrize("alphabet", [Alphabet(1), Alphabet(4), Alphabet(16, 2**0.5)])
def test_the_error_falls_until_the_smallest_spike_is_too_large(coding: Coding, alphabet: Alphabet) -> None:
    x = torch.rand(50, 20) * 2 - 1
    made = neuron(alphabet, coding)
    error = (run(made, x, 64) - x).abs().amax((1, 2))
    floor = alphabet.ratio ** (1 - alphabet.levels) / 2 if coding is Coding.DIFFERENTIAL else 0.5 / 64
    assert error[-1] <= floor + 1e-6


def test_a_burst_codes_what_the_spikes_before_it_left() -> None:
    u, threshold = torch.tensor([0.8, -0.3]), torch.tensor(1.0)
    spikes = emit(Alphabet(4), u, Alphabet(4).rounding(Alphabet(4).ladder(threshold)), count=3)
    assert [spike.tolist() for spike in spikes] == [[1.0, -0.25], [-0.25, 0.0], [0.0, 0.0]]


def test_prior_and_bias_enter_as_the_formula_says() -> None:
    made = neuron(Alphabet(1), Coding.DIFFERENTIAL, threshold=1.0)
    made.prior, made.bias = torch.tensor([2.0, -1.0]), torch.tensor([[0.25, 0.0]])
    decoded = run(made, torch.tensor([[2.9, -1.1]]), 2)
    assert decoded[0].tolist() == [[3.25, -1.0]]
    assert decoded[1].tolist() == [[3.25, -1.0]]  # no bias after its last timestep, and 2.9 - 3.25 is below half a spike


def test_thresholds_by_timestep_keep_the_last_one() -> None:
    made = neuron(Alphabet(1), Coding.DIFFERENTIAL)
    made.threshold = torch.tensor([[1.0], [0.5]])
    assert run(made, torch.tensor([[2.0]]), 4).flatten().tolist() == [1.0, 1.5, 2.0, 2.0]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("coding", list(Coding))
def test_chunks_carry_the_state(chunk: int, coding: Coding) -> None:
    made, x = neuron(Alphabet(4), coding), torch.randn(3, 5)
    assert torch.equal(run(made, x, 7, chunk), run(made, x, 7))


def test_every_run_starts_from_rest_even_after_a_failure() -> None:
    made, x = neuron(Alphabet(4), Coding.RATE), torch.randn(3, 5)
    first = run(made, x, 3)
    stop = {"": lambda event: (_ for _ in ()).throw(KeyError("stop"))}
    with pytest.raises(KeyError, match="stop"), probing(made, stop):
        run(made, x, 3)
    assert torch.equal(run(made, x, 3), first)
    assert present_run() is None


def test_an_input_for_each_timestep_is_followed() -> None:
    frames = torch.arange(4.0).reshape(4, 1, 1, 1, 1)
    made = neuron(None, Coding.DIFFERENTIAL)
    assert torch.equal(run(made, frames, 4), frames)
    with pytest.raises(ValueError, match="4 timesteps was given to a run of 3"):
        run(made, frames, 3)


def test_misuse_is_explained() -> None:
    made = CodedNeuron(Alphabet(1))
    with pytest.raises(RuntimeError, match="no thresholds yet: calibrate"):
        made(torch.zeros(1, 2))
    with running(Run(timesteps=2)), pytest.raises(RuntimeError, match="batch of 3, not a multiple of the 2 timesteps"):
        made(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="must be at least 1, got timesteps=0"):
        simulate(made, torch.zeros(1, 2), 0)


def test_analog_context_passes_inputs_through_and_ends() -> None:
    made, x = neuron(Alphabet(1), Coding.DIFFERENTIAL), torch.randn(2, 3)
    with analog():
        assert torch.equal(run(made, x, 1)[0], x)
    assert not torch.equal(run(made, x, 1)[0], x)


def test_gradient_is_one_within_reach_and_zero_beyond() -> None:
    x = torch.tensor([[0.3, -0.9, 5.0, -7.0]], requires_grad=True)
    run(neuron(Alphabet(4), Coding.DIFFERENTIAL), x, 1).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_probes_report_target_spikes_and_decoded_value() -> None:
    made, seen = neuron(Alphabet(1), Coding.DIFFERENTIAL), []
    network = nn.Sequential(made)
    with probing(network, {"0": seen.append}):
        run(made, torch.tensor([[0.9]]), 2)
    assert [(e.t, e.target.item(), e.spikes[0].item(), e.decoded.item()) for e in seen] == [
        (0, pytest.approx(0.9), 1.0, 1.0),
        (1, pytest.approx(0.9), 0.0, 1.0),
    ]
    assert isinstance(seen[0], Event)


def test_tables_take_their_shape_from_a_state_dict() -> None:
    made, other = neuron(Alphabet(1), Coding.RATE), CodedNeuron(Alphabet(1), Coding.RATE)
    made.threshold, made.prior, made.bias = torch.rand(3, 1, 5), torch.rand(4, 5), torch.rand(3, 1, 5)
    other.load_state_dict(made.state_dict())
    x = torch.randn(2, 4, 5)
    assert torch.equal(run(made, x, 3), run(other, x, 3))


@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_a_layer_synchronous_neuron_spends_its_timesteps_on_each_input(chunk: int | None) -> None:
    """What it puts out at t is what t steps of an ordinary neuron make of the input at t."""
    made, other = neuron(Alphabet(1), Coding.DIFFERENTIAL), neuron(Alphabet(1), Coding.DIFFERENTIAL)
    made.synchronous = 3
    for one in (made, other):
        one.threshold, one.bias = torch.tensor([[1.0], [0.5], [0.25]]), torch.tensor([[0.0], [0.1]])
    frames = torch.randn(3, 4, 5)
    out = torch.stack([run(other, frame, t + 1)[-1] for t, frame in enumerate(frames)])
    events: list[Event] = []
    with probing(nn.ModuleDict({"n": made}), {"n": events.append}):
        got = simulate(lambda x: made(x.flatten(1)), frames.reshape(3, 4, 1, 1, 5), 3, chunk)
    assert torch.equal(got, out)
    assert [len(event.spikes) for event in events] == [1, 2, 3]
    assert torch.allclose(sum(events[2].spikes) + 0.1, out[2])


@pytest.mark.parametrize(("run_of", "taken"), [(2, [2, 3, 4]), (3, [1, 2, 3]), (4, [1, 1, 2])])
def test_a_layer_synchronous_neuron_takes_as_many_timesteps_as_it_has_thresholds(run_of: int, taken: list[int]) -> None:
    made, other = neuron(Alphabet(1), Coding.DIFFERENTIAL), neuron(Alphabet(1), Coding.DIFFERENTIAL)
    made.synchronous = run_of
    for one in (made, other):
        one.threshold, one.bias = torch.tensor([[1.0], [0.5], [0.25]]), torch.tensor([[0.0], [0.1]])
    frames, events = torch.randn(3, 4, 5), list[Event]()
    with probing(nn.ModuleDict({"n": made}), {"n": events.append}):
        got = simulate(lambda x: made(x.flatten(1)), frames.reshape(3, 4, 1, 1, 5), 3)
    assert torch.equal(got, torch.stack([run(other, frame, steps)[-1] for frame, steps in zip(frames, taken, strict=True)]))
    assert [len(event.spikes) for event in events] == taken
    assert [event.t for event in events] == [0, 1, 2]
    for t, steps in enumerate(taken):
        made_range, other_range = made.range_after(t + 1), other.range_after(steps)
        assert all(map(torch.equal, made_range, other_range))
