"""Membrane neurons in fitted substitutes: how they are balanced, what then reads spikes, and what training them gains."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from conftest import make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.calibration import balance
from vit2snn.calibration.balance import GAINS, OFFSETS, counts, least_error
from vit2snn.convert import RECIPES, Membrane, to_spiking
from vit2snn.convert.fit_branches import Streams, places
from vit2snn.measure import Audit, audit
from vit2snn.spiking import IF, LIF, Balanced, IntegerLIF, TernaryLIF, over_time

DRIVEN = RECIPES["spike-driven"].changed(refit="ridge")


def explained(rate: Tensor, target: Tensor) -> Tensor:
    """R² of the best line from rates to what they stand for, channel by channel."""
    rate, target = rate - rate.mean(0), target - target.mean(0)
    return (rate * target).sum(0).square() / (rate.square().sum(0) * target.square().sum(0))


def rates(balanced: Balanced, frames: Tensor) -> Tensor:
    """Firing rates ``[samples, C]``, as the network will have them."""
    with torch.no_grad():
        return (over_time(balanced, frames).mean(0) / balanced.height).flatten(0, -2)


# Balancing


@pytest.mark.parametrize(("kind", "least"), [("if", 0.99), ("lif", 0.9), ("plif", 0.9), ("ternary", 0.9), ("integer-lif", 0.9)])
def test_a_line_of_the_rates_tells_almost_all_of_what_a_balanced_neuron_stands_for(kind: Any, least: float) -> None:
    scale, shift = torch.tensor([1.0, 30.0, 1e-3]), torch.tensor([0.0, -50.0, 4e-3])
    frames = (torch.rand(1, 200, 5, 3) * scale + shift).expand(32, -1, -1, -1)
    neuron = Membrane(neuron=kind).balanced()
    rate, target = balance(neuron, frames)
    assert neuron.log_threshold.shape == neuron.offset.shape == (1, 3) and neuron.height.shape == ()
    torch.testing.assert_close(target, frames[0].flatten(0, 1))
    assert explained(rates(neuron, frames), target).min() > least
    torch.testing.assert_close(rates(neuron, frames), rate, atol=0.04, rtol=0)  # of 32 timesteps
    assert (explained(rates(Membrane(neuron=kind).balanced(), frames), target).nan_to_num(0) < least).any()  # unbalanced


@pytest.mark.parametrize("kind", ["if", "lif", "integer-lif"])
def test_a_rectified_line_is_told_too_by_neurons_in_its_place(kind: Any) -> None:
    frames = torch.randn(1, 400, 5, 3).expand(32, -1, -1, -1)
    for function in (nn.ReLU(), nn.Hardtanh(0.0, 1.0)):
        neuron = Membrane(neuron=kind).balanced(function=function)
        target = balance(neuron, frames)[1]
        torch.testing.assert_close(target, function(frames[0].flatten(0, 1)))
        assert explained(rates(neuron, frames), target).min() > 0.85


@pytest.mark.parametrize("neuron", [LIF(), IF(v_reset=None), TernaryLIF(), IntegerLIF()])
def test_the_balance_of_least_error_is_the_best_of_all_tried(neuron: Any) -> None:
    target = torch.randn(800, 3)
    currents = target + 0.3 * torch.randn(4, 800, 3)
    gain, offset = least_error(neuron, currents, target)

    def correlation(g: Tensor, b: Tensor) -> Tensor:
        rate = counts(neuron, currents * g + b)
        return torch.stack([torch.corrcoef(torch.stack([rate[:, c], target[:, c]]))[0, 1] for c in range(3)]).nan_to_num(-1)

    tried = torch.stack([correlation(*torch.tensor([g, b])) for g, b in itertools.product(GAINS, OFFSETS)])
    torch.testing.assert_close(correlation(gain, offset), tried.amax(0), atol=2e-4, rtol=0)
    assert correlation(gain, offset).min() > 0.7


@pytest.mark.parametrize("images", [1, 6])
@pytest.mark.parametrize("kind", ["if", "lif", "plif", "ternary", "integer-lif"])
def test_a_channel_that_never_varies_fires_steadily_and_a_dead_one_not_at_all(kind: Any, images: int) -> None:
    frames = torch.tensor([3.0, -2.0, 0.0]).expand(8, images, 1, 3)
    neuron = Membrane(neuron=kind).balanced(function=nn.ReLU())
    balance(neuron, frames)
    assert all(torch.isfinite(value).all() for value in neuron.state_dict().values())
    given = over_time(neuron, frames).mean(0)
    torch.testing.assert_close(given, torch.tensor([3.0, 0.0, 0.0]).expand(images, 1, 3))
    silent = Membrane(neuron=kind).balanced(function=nn.ReLU())
    balance(silent, frames - 5)
    assert silent.height == 1 and not over_time(silent, frames - 5).any()


def test_thresholds_vary_along_the_channels_that_a_neuron_is_told() -> None:
    frames = torch.randn(4, 5, 2, 7, 3)
    for axes, shape in (((-3, -1), (2, 1, 3)), ((-1,), (1, 1, 3)), (None, (2, 1, 1))):
        neuron = Membrane().balanced(axes)
        balance(neuron, frames)
        assert neuron.log_threshold.shape == shape


# What reads spikes then


def rows(found: Audit) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    kinds: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for row in found.rows:
        kinds.setdefault((row.module, row.function), []).append(row.operands)
    return kinds


def test_all_but_the_patch_embedding_are_additions_of_binary_spikes_and_their_counts(vit: nn.Module, images: Tensor) -> None:
    found = audit(to_spiking(vit, DRIVEN, images), [images])
    assert rows(found) == {
        ("patch_embed.proj", "conv2d"): [("analog",)],
        ("blocks.*.attn.qkv", "linear"): [("binary",)],
        ("blocks.*.attn.terms.ssa", "matmul"): [("binary", "binary"), ("binary", "integer")],  # kᵀ v, and q of it
        ("blocks.*.attn.terms.conv.conv", "conv2d"): [("binary",)],
        ("blocks.*.attn.proj", "linear"): [("binary",)],
        ("blocks.*.mlp.fc1", "linear"): [("binary",)],
        ("blocks.*.mlp.fc2", "linear"): [("binary",)],
        ("head", "linear"): [("binary",)],
    }
    assert [row.module for row in found.rows if not row.addition_only] == ["patch_embed.proj"]
    macs = 16 * 32 * 48 * 4  # of the patch embedding, in 4 timesteps
    added = sum(row.accumulates for row in found.rows)
    assert found.share == pytest.approx(added / (added + macs)) and added > macs


def test_of_a_kept_layernorm_the_function_is_left(vit: nn.Module, images: Tensor) -> None:
    found = audit(to_spiking(vit, DRIVEN.changed(norm="layernorm"), images), [images[:2]])
    assert {row.function for row in found.rows if not row.addition_only} == {"conv2d", "layer_norm"}


@pytest.mark.parametrize("kind", ["qk-token+ssa", "qk-channel", "qk-mixed", "sdsa", "emsa", "experts+qk-relu", "ssa+conv+tim"])
@pytest.mark.parametrize("neuron", ["if", "integer-lif"])
def test_every_operation_of_every_kind_is_driven(kind: str, neuron: Any) -> None:
    vit, images = make_vit(img_size=12, embed_dim=16, depth=1), torch.randn(6, 3, 12, 12)
    recipe = make_recipe(attention=kind, mlp="emsp", norm="static", refit="none", timesteps=3, neuron=neuron)
    found = audit(to_spiking(vit, recipe, images), [images])
    assert [row.module for row in found.rows if not row.addition_only] == ["patch_embed.proj"]
    kinds = {kind for row in found.rows if row.module != "patch_embed.proj" for kind in row.operands}
    assert kinds <= {"silent", "binary", "integer"}


@pytest.mark.parametrize(
    ("place", "module", "function"),
    [
        ("blocks.0.attn.terms.ssa.spiking_operand1", "blocks.*.attn.terms.ssa", "matmul"),  # both products
        ("blocks.0.attn.terms.ssa.rectify_query", "blocks.0.attn.terms.ssa", "matmul"),
        ("blocks.1.mlp.act", "blocks.1.mlp.fc2", "linear"),
        ("head.neuron", "head", "linear"),
    ],
)
def test_an_operand_without_its_neuron_is_told(place: str, module: str, function: str, vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, DRIVEN, images)
    snn.network.set_submodule(place, nn.Softplus())
    multiplied = {(row.module, row.function) for row in audit(snn, [images[:2]]).rows if not row.addition_only}
    assert (module, function) in multiplied


def test_what_the_recipe_ignores_stays_as_it_is(vit: nn.Module, images: Tensor) -> None:
    snn = to_spiking(vit, dataclasses.replace(DRIVEN, ignore=("head", "blocks.0.mlp.fc1")), images)
    assert type(snn.network.get_submodule("head")) is type(snn.network.get_submodule("blocks.0.mlp.fc1")) is nn.Linear
    multiplied = [row.module for row in audit(snn, [images[:2]]).rows if not row.addition_only]
    assert multiplied == ["patch_embed.proj", "blocks.0.mlp.fc1", "head"]


# Training


def lacking(refit: Any) -> list[float]:
    """What each branch of a network that was fitted so far lacks, relative to what it should give."""
    torch.manual_seed(0)
    images, ann = torch.randn(32, 3, 16, 16), make_vit()
    network: Any = to_spiking(ann, DRIVEN.changed(refit=refit), images).network
    streams, found = Streams(ann, images, 4), []  # type: ignore[arg-type]
    with torch.no_grad():
        for place in places(network, ann):  # type: ignore[arg-type]
            streams.pass_theirs(place)
            wanted = streams.theirs - streams.ours.mean(0)
            given = over_time(nn.Sequential(*place.ours), streams.ours).mean(0)
            found.append(float(((given - wanted).square() * place.weights(wanted)).mean() / wanted.var()))
            streams.pass_ours(place)
    return found


@pytest.mark.slow
def test_each_fit_through_spikes_leaves_less_of_each_branch_than_balancing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit2snn.convert.fit_branches.STEPS", 60)
    balanced, regressed, trained = map(lacking, ("none", "ridge", "blocks"))
    for fitted in regressed, trained:
        assert all(after < 0.9 * before for before, after in zip(balanced, fitted, strict=True)), (balanced, fitted)


def test_what_a_linear_layer_reads_goes_into_its_weights(vit: nn.Module, images: Tensor) -> None:
    """Gains and levels of spikes are the scaffold of a fit; afterwards the heights of its neurons are 1."""
    snn = to_spiking(vit, DRIVEN, images)
    layers = [m for m in snn.network.modules() if isinstance(m, nn.Linear) and isinstance(getattr(m, "neuron", None), Balanced)]
    assert len(layers) == 3 * 2 + 1 and all(layer.neuron.height == 1 for layer in layers)
    assert not any("gain" in name and "neuron" in name for name in snn.network.state_dict())
