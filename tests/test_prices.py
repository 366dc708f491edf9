"""What a spike costs and is worth, and where neurons rest that keep silent."""

from __future__ import annotations

import pytest
import torch
from conftest import make_vit
from torch import Tensor, nn

from vit2snn.calibration import ThresholdRule, calibrate
from vit2snn.calibration.activity import COMMON, Activity
from vit2snn.convert import Recipe, to_spiking
from vit2snn.convert.conversion import structure
from vit2snn.measure.meter import Meter
from vit2snn.spiking import Alphabet, CodedNeuron, Coding, Event, SpikingLinear, driven, simulate
from vit2snn.tracing.reach import reach


def test_a_spike_reaches_the_weights_and_values_that_it_meets() -> None:
    """A ViT of width 32 with 17 tokens in heads of 16 channels, whose patches do not overlap."""
    found = reach(structure(make_vit(), Recipe(), (3, 16, 16)).network, (3, 16, 16))
    block = {
        "attn.qkv.neuron": 3 * 32,
        "attn.spiking_attention.query": 17,
        "attn.spiking_attention.key": 17,
        "attn.spiking_attention.weights": 16,
        "attn.spiking_attention.value": 17,
        "attn.proj.neuron": 32,
        "mlp.fc1.neuron": 128,
        "mlp.fc2.neuron": 32,
    }
    expected = {"patch_embed.proj.neuron": 32, "head.neuron": 7}
    expected |= {f"blocks.{index}.{name}": macs for index in range(2) for name, macs in block.items()}
    assert found == expected


def test_the_meter_counts_what_each_spike_reaches() -> None:
    """Every weight is met by single spikes; of a padded convolution, `reach` also counts what the padding takes away."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1)
            self.left, self.right, self.head = nn.Linear(5, 7), nn.Linear(5, 4), nn.Linear(11, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu().mean((2, 3))
            return self.head(torch.cat([self.left(x), self.right(x)], -1))

    snn = to_spiking(Net(), Recipe(timesteps=1), torch.randn(64, 3, 8, 8)).eval()
    reached = reach(snn.network, (3, 8, 8))
    assert reached == {"conv.neuron": 5 * 9, "left.neuron": 7, "right.neuron": 4, "head.neuron": 3}
    with torch.no_grad(), Meter(snn.network) as meter:
        snn.readout(meter.show(torch.randn(4, 3, 8, 8)), chunk=1)
    met = {f"{tally.module}.neuron": tally for tally in meter.tallies if tally.kind == "weighted"}
    assert set(met) == set(reached)
    for name, tally in met.items():
        sent, added = float(tally.operands[0].spikes.sum()), float(tally.accumulates.sum())
        assert 0 < added <= reached[name] * sent
        assert name == "conv.neuron" or added == reached[name] * sent


def test_each_turn_of_a_module_reaches_what_it_is_read_by() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(192, 192), nn.Linear(192, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(self.inner(x.flatten(1)).relu()))

    network = structure(Twice(), Recipe(timesteps=1), (3, 8, 8)).network
    assert reach(network, (3, 8, 8)) == {"inner.turns.0.neuron": 192, "inner.turns.1.neuron": 192, "head.neuron": 5}


def seen(sensitivity: Tensor, reach: float = 1.0) -> Activity:
    """Of tokens and channels."""
    activity = Activity("neuron", (-1,), sensitivity, reach)
    activity(Event(0, torch.randn(8, *sensitivity.shape), None, None, None))  # type: ignore[arg-type]
    return activity


def test_silence_follows_cost_and_worth() -> None:
    tokens, channels = torch.tensor([4.0, 1.0, 1.0]), torch.tensor([1.0, 9.0])
    product = tokens[:, None] * channels
    silence = seen(product).silence(1e-2)
    assert torch.allclose(seen(product, 300.0).silence(1e-2), 300**0.5 * silence)
    smooth = (1 - COMMON) * tokens / tokens.mean() + COMMON, (1 - COMMON) * channels / channels.mean() + COMMON
    assert torch.allclose(silence, (1e-2 / (product.mean() * smooth[0][:, None] * smooth[1])).sqrt())
    assert torch.equal(seen(product).silence(0.0), torch.zeros(3, 1))


def test_a_token_without_bearing_keeps_silent_and_costs_the_others_nothing() -> None:
    """The worth of the class token is the same, whether tokens that nobody reads stand beside it or not."""
    alone, beside = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = seen(beside).silence(1e-2)
    assert torch.isinf(found[1:]).all()
    assert torch.allclose(found[:1], seen(alone).silence(1e-2), rtol=0.1)


@pytest.mark.parametrize("price", [0.0, 0.05])
def test_a_neuron_rests_at_the_mean_of_what_it_says_nothing_of(price: float) -> None:
    torch.manual_seed(0)
    neuron = CodedNeuron(Alphabet(16, 2**0.25), Coding.DIFFERENTIAL, (-1,))
    network = nn.Sequential(driven(SpikingLinear, nn.Linear(6, 4), neuron))
    x = nn.functional.gelu(3 * torch.randn(4000, 6))  # most values lie a little below 0, the mean is far above
    calibrate(network, [x], 1, ThresholdRule("mse", headroom=1.25, price=price))
    if not price:
        assert torch.allclose(neuron.prior, x.mean(0), atol=1e-5)
        return
    silent = (x - neuron.prior).abs() < neuron.silence[0]
    middle = torch.where(silent, x, 0.0).sum(0) / silent.sum(0)
    assert (neuron.prior - middle).abs().max() < 0.05 and (neuron.prior < 0.6 * x.mean(0)).all()

    def cost(prior: Tensor) -> float:
        """The mean squared error, and what spikes cost in units of it."""
        neuron.prior = prior
        with torch.no_grad():
            error = (simulate(neuron, x, 1)[0] - x).square()
        return float((error + neuron.silence[0].square() * ((x - prior).abs() >= neuron.silence[0])).mean())

    assert cost(neuron.prior) < 0.85 * cost(x.mean(0))
