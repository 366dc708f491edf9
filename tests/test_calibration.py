from __future__ import annotations

import pytest
import torch
from conftest import make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.calibration import ThresholdRule, calibrate
from vit2snn.calibration.channels import from_channels, to_channels
from vit2snn.convert import RECIPES, Recipe, to_spiking
from vit2snn.errors import ModelError
from vit2snn.measure import evaluate
from vit2snn.spiking import Alphabet, CodedNeuron, Coding, SpikingLinear, driven, neurons, simulate


def single(
    alphabet: Alphabet, per_channel: bool = False, coding: Coding = Coding.DIFFERENTIAL
) -> tuple[nn.Module, CodedNeuron]:
    linear = nn.Linear(6, 4)
    neuron = CodedNeuron(alphabet, coding, (-1,), per_channel)
    return nn.Sequential(driven(SpikingLinear, linear, neuron)), neuron


def difficult(count: int = 400) -> Tensor:
    """Channels that are ordinary, never positive, constant, always zero, and one with rare large values."""
    x = torch.randn(count, 6)
    x[:, 1] = -x[:, 1].abs() - 1
    x[:, 2] = 3.0
    x[:, 3] = 0.0
    x[:, 4] = torch.where(torch.rand(count) < 0.005, 50.0, x[:, 4])
    return x


RULES = [
    ThresholdRule(),
    ThresholdRule(closed_loop=False),
    ThresholdRule("max", headroom=1.0),
    ThresholdRule("mse", headroom=1.0),
    ThresholdRule("entropy", headroom=1.0),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("prior", ["none", "mean", "minimum"])
def test_difficult_channels_are_decoded(rule: ThresholdRule, per_channel: bool, prior: str) -> None:
    network, neuron = single(Alphabet(12), per_channel)
    x = difficult()
    calibrate(network, [x], 8, rule, prior)  # type: ignore[arg-type]
    assert (neuron.threshold > 0).all()
    with torch.no_grad():
        decoded = simulate(neuron, x, 8)
    error = (decoded - x).norm(dim=(1, 2)) / x.norm()
    assert error[-1] < (1.0 if rule.observer == "entropy" else 0.15)  # entropy lets rare large values go
    assert error[-1] <= error[0] + 1e-6


def test_thresholds_and_biases_have_the_shapes_that_are_documented() -> None:
    for per_channel, shape in [(False, (5, 1)), (True, (5, 6))]:
        network, neuron = single(Alphabet(4), per_channel)
        calibrate(network, [difficult(600)], 5, ThresholdRule())
        assert neuron.threshold.shape == shape
        assert neuron.bias.shape == (5, 6)
        assert neuron.prior.shape == (6,)
        calibrate(network, [difficult(600)], 5, ThresholdRule(closed_loop=False), "none", bias=False)
        assert neuron.threshold.shape == (1, *shape[1:])
        assert neuron.bias.numel() == 0


def test_the_mean_prior_is_the_mean_and_the_minimum_the_minimum() -> None:
    network, neuron = single(Alphabet(4))
    x = difficult()
    calibrate(network, list(x.split(100)), 2, ThresholdRule(), "mean")
    assert torch.allclose(neuron.prior, x.mean(0), atol=1e-5)
    calibrate(network, list(x.split(100)), 2, ThresholdRule(), "minimum")
    assert torch.equal(neuron.prior, x.amin(0))


def test_biases_make_the_decoded_mean_that_of_the_ann() -> None:
    network, neuron = single(Alphabet(2))
    x = difficult()
    calibrate(network, [x], 3, ThresholdRule())
    with torch.no_grad():
        decoded = simulate(neuron, x, 3)
    assert torch.allclose(decoded.mean(1), x.mean(0).expand(3, -1), atol=1e-4)


def test_static_rate_thresholds_minimise_the_error_of_the_decoded_value() -> None:
    network, neuron = single(Alphabet(1, signed=False), coding=Coding.RATE)
    x = torch.rand(500, 6)
    calibrate(network, [x], 16, ThresholdRule("mse", headroom=1.0, closed_loop=False), "none", bias=False)

    def error(threshold: float) -> float:
        neuron.threshold = torch.tensor([[threshold]])
        return float((simulate(neuron, x, 16)[-1] - x).square().mean())

    chosen = float(neuron.threshold)
    assert error(chosen) <= 1.1 * min(error(chosen * factor) for factor in (0.5, 0.7, 0.85, 1.2, 1.5, 2.0))


def test_the_error_has_no_plateau_before_the_configured_timesteps(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, Recipe(timesteps=8), images)
    with torch.no_grad():
        error = (snn(images) - vit(images)).norm(dim=(1, 2)) / vit(images).norm()
    assert error[-1] < 2e-3
    assert (error[1:5] < error[:4]).all(), error


def test_more_batches_are_used_and_give_what_one_batch_gives(vit: nn.Module) -> None:
    images = torch.randn(64, 3, 16, 16)
    recipe = make_recipe(observer="percentile", headroom=4.0)
    together, apart = to_spiking(vit, recipe, [images]), to_spiking(vit, recipe, list(images.split(16)))
    first = to_spiking(vit, recipe, [images[:16]])
    whole, parts, part = (torch.cat([n.threshold.flatten() for _, n in neurons(s)]) for s in (together, apart, first))
    assert torch.allclose(parts, whole, rtol=0.5)
    assert (parts - whole).abs().mean() < (part - whole).abs().mean()


def test_values_that_are_not_finite_name_the_neuron() -> None:
    model = make_vit()
    images = torch.randn(4, 3, 16, 16)
    images[2, 0, 3, 3] = float("nan")
    with pytest.raises(ModelError, match=r"reach 'patch_embed.proj.neuron' are not finite"):
        to_spiking(model, Recipe(), images)


def test_channels_go_there_and_back() -> None:
    x = torch.randn(5, 2, 3, 4)
    assert to_channels(x, (-3, -1)).shape == (8, 15)
    assert torch.equal(to_channels(x, ()), x.reshape(1, -1))
    mean = from_channels(to_channels(x, (-3, -1)).mean(1), x, (-3, -1))
    assert torch.allclose(mean, x.mean((0, 2), keepdim=True)[0])
    assert to_channels(torch.randn(5, 4), (-3, -1)).shape == (4, 5)


def test_calibration_restores_the_network_after_a_failure() -> None:
    network, neuron = single(Alphabet(2))

    def batches() -> object:
        yield difficult()
        raise OSError("the disk is gone")

    class Failing:
        passes = 0

        def __iter__(self) -> object:
            self.passes += 1
            return iter([difficult()]) if self.passes == 1 else batches()

    with pytest.raises(OSError, match="disk is gone"):
        calibrate(network, Failing(), 2, ThresholdRule())  # type: ignore[arg-type]
    assert network[0].neuron is neuron


def test_levels_are_as_fine_as_the_range_of_the_values_allows() -> None:
    ratios = {}
    for name, x in {"narrow": torch.rand(400, 6) + 1, "wide": torch.exp(4 * torch.randn(4000, 6))}.items():
        network, neuron = single(Alphabet(8, 2**0.25))
        calibrate(network, [x], 1, ThresholdRule("mse", headroom=1.0), "none")
        ratios[name] = float(neuron.ratio)
    assert ratios["narrow"] == pytest.approx(2**0.25)
    assert ratios["wide"] > 1.4


def test_values_twice_as_large_as_any_before_are_reached() -> None:
    network, neuron = single(Alphabet(16, 2**0.25))
    calibrate(network, [torch.rand(1000, 6) * 2 - 1], 8, RECIPES["faithful"].coded.threshold_rule)
    beyond = torch.full((1, 6), 2.0)
    with torch.no_grad():
        assert (simulate(neuron, beyond, 8)[-1] - beyond).abs().max() < 0.01


def test_neurons_on_which_no_logit_depends_keep_silent(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, Recipe(timesteps=2), images)
    last = {name: neuron for name, neuron in snn.neurons().items() if name.startswith("blocks.1.")}
    for part in ("spiking_attention.query", "proj.neuron", "fc1.neuron", "fc2.neuron"):
        (neuron,) = (neuron for name, neuron in last.items() if name.endswith(part))
        silent = torch.isinf(neuron.silence[0]).squeeze()  # by token; only the class token is read
        assert silent.tolist() == [False] + 16 * [True]
    for part in ("key", "value", "qkv.neuron"):
        (neuron,) = (neuron for name, neuron in last.items() if name.endswith(part))
        assert not torch.isinf(neuron.silence).any()
    with torch.no_grad():
        before = snn(images)
        for neuron in snn.neurons().values():
            neuron.silence = torch.where(torch.isinf(neuron.silence), 0.0, neuron.silence)
        assert torch.equal(snn(images), before)


def test_a_price_saves_the_spikes_that_matter_least(vit: nn.Module, images: Tensor) -> None:
    labels = torch.zeros(len(images), dtype=torch.int64)
    points = [
        evaluate(to_spiking(vit, make_recipe(price=price), images), [(images, labels)]).points for price in (0.0, 1e-5, 1e-4)
    ]
    spikes = [[point.spikes_per_neuron for point in curve] for curve in points]
    assert spikes[0] > spikes[1] > spikes[2]
    assert points[1][0].relative_error < points[2][0].relative_error < 1
    assert points[2][3].relative_error < 0.3 * points[2][0].relative_error  # a price falls with time


@pytest.mark.slow
@torch.no_grad()
def test_layer_synchronous_ternary_steps_carry_more_than_a_bit_each(vit: nn.Module, images: Tensor) -> None:
    ann = vit(images)
    by_timesteps = {}
    for timesteps in (3, 5, 7, 8):
        snn = to_spiking(vit, RECIPES["ternary-synchronous"].changed(timesteps=timesteps), images)
        error = [float((logits - ann).norm() / ann.norm()) for logits in snn(images, timesteps)]
        assert error[-1] == min(error)
        by_timesteps[timesteps] = error[-1]
    assert by_timesteps[5] < 0.2 * by_timesteps[3] and by_timesteps[7] < 0.2 * by_timesteps[5] and by_timesteps[8] < 2e-3
    assert torch.equal(snn(images, 8, chunk=3), snn(images, 8))
    assert torch.equal(snn(images, 5), snn(images, 8)[:5])


def test_channels_of_few_samples_share_a_threshold(vit: nn.Module) -> None:
    """Only the class token bears on the logits behind the last attention: one sample of each channel in an image."""
    snn = to_spiking(vit, make_recipe(timesteps=2, granularity="channel"), torch.randn(40, 3, 16, 16))
    assert snn.neurons()["blocks.0.mlp.fc1.neuron"].threshold.shape == (2, 1, 32)
    assert snn.neurons()["blocks.1.mlp.fc1.neuron"].threshold.shape == (2, 1, 1)
