"""What an evaluation recommends: T within a budget, and what to do about what is not good enough."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.convert import RECIPES, Recipe, to_spiking
from vit2snn.convert.advice import advise
from vit2snn.measure import ModuleError, Point, Score, diagnose, evaluate


def point(t: int, top1: float, agreement: float, error: float, energy: float) -> Point:
    return Point(t, top1, agreement, error, 1.0 * t, 1.0 * t, energy, t)


def module(name: str, error: float, saturation: float = 0.0, dead: float = 0.0) -> ModuleError:
    return ModuleError(f"{name}.neuron", name, [error], 1.0, [saturation], dead)


GOOD = [point(1, 80, 99.5, 0.1, 0.2), point(2, 80, 100, 0.01, 0.4)]
BAD = [point(1, 60, 70, 0.5, 0.2), point(2, 70, 85, 0.3, 0.4)]
EVEN = [module(name, 0.1) for name in "abcd"]


def actions(points: list[Point], modules: list[ModuleError], recipe: Recipe = RECIPES["faithful"]) -> list[str]:
    return [advice.action for advice in advise(points, 80 - points[-1].score, modules, recipe.changed(timesteps=2))]


def test_what_is_good_needs_no_advice() -> None:
    assert actions(GOOD, EVEN) == []


def test_an_error_that_falls_wants_time_and_one_that_does_not_wants_levels() -> None:
    assert "vit2snn convert --timesteps 4" in actions(BAD, EVEN)
    stuck = [BAD[0], dataclasses.replace(BAD[1], relative_error=0.49)]
    assert any("levels" in action for action in actions(stuck, EVEN))
    assert "more bits" in actions(stuck, EVEN, RECIPES["faithful"].changed(weight_bits=4))[0]
    longer = [*BAD, point(3, 71, 86, 0.29, 0.6)]
    assert "vit2snn convert --timesteps 3" in actions(longer, EVEN)


def test_saturation_comes_first_and_names_the_worst_neuron() -> None:
    modules = [module("a", 0.1, 0.02), module("b", 0.1, 0.3), *EVEN[2:]]
    advice = advise(BAD, 10.0, modules, RECIPES["faithful"].changed(timesteps=2))
    assert "2 of 4 neurons see values beyond their largest threshold" in advice[0].finding
    assert "b.neuron (30.0 %" in advice[0].finding
    assert "--samples" in advice[0].action and "headroom" in advice[0].action


def test_outliers_dead_neurons_and_single_culprits_are_told() -> None:
    ternary = RECIPES["faithful"].changed(levels=1)
    assert "recipe field spikes.rotation = true" in actions(BAD, EVEN, ternary)
    dead = [module("a", 0.1, dead=0.95), *EVEN[1:]]
    assert 'recipe field spikes.granularity = "channel"' in actions(BAD, dead)
    culprit = [module("a", 0.9), *EVEN[1:]]
    assert any("ignore = ['a']" in action for action in actions(BAD, culprit))


def test_spiking_branches_want_training_and_dear_networks_a_budget() -> None:
    assert actions(BAD, EVEN, RECIPES["qkformer-membrane"])[0].startswith("vit2snn finetune")
    dear = [GOOD[0], dataclasses.replace(GOOD[1], energy=1.5)]
    assert any("--budget" in action for action in actions(dear, EVEN))


def test_the_advice_helps(vit: nn.Module, images: Tensor) -> None:
    """Thresholds that are far too low saturate; the neurons that do are named, and head-room is what helps."""
    recipe = make_recipe(
        timesteps=2, levels=2, ratio=2.0, thresholds="static", observer="percentile", percentile=50.0, headroom=0.2
    )
    labels = torch.arange(len(images)) % 7
    poor = evaluate(to_spiking(vit, recipe, images), [(images, labels)])
    assert any("headroom" in advice.action for advice in poor.advice)
    better = evaluate(to_spiking(vit, recipe.changed(headroom=2.0), images), [(images, labels)])
    assert better.points[-1].relative_error < poor.points[-1].relative_error


def test_saturation_and_dead_neurons_are_those_counted_by_hand(vit: nn.Module, images: Tensor) -> None:
    static = {"thresholds": "static", "observer": "percentile", "percentile": 60.0, "prior": "none", "bias": False}
    snn = to_spiking(vit, make_recipe(timesteps=2, levels=1, input_spikes=1, **static), images)
    rows = {row.name: row for row in diagnose(snn, images, 2)}
    fc1, seen = snn.network.blocks[0].mlp.fc1.neuron, []
    fc1.register_forward_hook(lambda neuron, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        snn(images, 2, chunk=1)
    threshold, row = fc1.threshold[0], rows["blocks.0.mlp.fc1.neuron"]
    (x0, m0), (x1, m1) = seen
    beyond = [(x0.abs() > threshold).float().mean(), ((x1 - m0).abs() > threshold).float().mean()]
    assert row.saturation == pytest.approx([float(share) for share in beyond])
    fired = ((m0 != 0) | (m1 != m0)).any(0)
    assert row.dead == pytest.approx(1 - float(fired.float().mean()))


def test_an_activation_that_is_always_zero_has_no_huge_relative_error(images: Tensor) -> None:
    model = make_vit(act_layer=nn.ReLU)
    nn.init.constant_(model.blocks[0].mlp.fc1.bias, -1e3)  # type: ignore[arg-type, index, union-attr]
    with torch.no_grad():
        rows = {row.name: row for row in diagnose(to_spiking(model, "faithful", images), images)}
    assert all(0 <= error < 1e3 for row in rows.values() for error in row.relative_error)


def test_the_earliest_point_within_a_drop_and_the_best_within_an_energy(vit: nn.Module, images: Tensor) -> None:
    result = evaluate(to_spiking(vit, Recipe(timesteps=1), images), [(images, torch.arange(len(images)) % 7)])
    points = (point(1, 70, 80, 0.5, 0.2), point(2, 79, 95, 0.2, 0.4), point(3, 81, 99, 0.1, 0.6), point(4, 81, 99, 0.05, 0.8))
    result = dataclasses.replace(result, ann=Score(top1=80.0), points=points)

    def t(**budget: float) -> int | None:
        found = result.recommended(**budget)
        return found.timestep if found else None

    assert (t(max_drop=20), t(max_drop=1), t(max_drop=0), t(max_drop=-2)) == (1, 2, 3, None)
    assert (t(max_energy=0.5), t(max_energy=1), t(max_energy=0.1)) == (2, 3, None)
    assert (t(max_drop=1, max_energy=0.3), t(max_drop=1, max_energy=0.5)) == (None, 2)
