"""Everything is made where the ANN is, and of its type."""

from __future__ import annotations

import copy
import dataclasses
from itertools import chain
from typing import Any

import pytest
import torch
from accelerator import Accelerator
from conftest import brief, make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.convert import RECIPES, Recipe, SpikingModel, Structure, candidates, structure, to_spiking
from vit2snn.spiking import FullPrecision

SIZE = (3, 16, 16)
B: dict[str, Any] = {"norm": "static", "readout": "mean", "neuron": "if"}
DRIVEN = {
    **{name: RECIPES[name] for name in ("qkformer-membrane", "experts-membrane", "spike-driven")},
    "interactions": make_recipe(attention={"0": "emsa+tim", "1": "qk-mixed+tim"}, mlp="emsp", **B),
    "regressed": make_recipe(attention="sdsa+qk-relu", mlp="relu", refit="ridge", **(B | {"neuron": "plif"})),
    "integers": make_recipe(attention="qk-channel", mlp="relu", **(B | {"neuron": "integer-lif"})),
    "substitutes": Recipe(
        structure=Structure(
            {"0": "qk-mixed+conv", "1": "experts+emsa+ssa"}, {"0": "relu", "1": "emsp"}, norm="gated", refit="network", passes=1
        )
    ),
    "not re-fitted": make_recipe(attention="ssa", mlp="mlp", refit="none", **(B | {"norm": "layernorm"})),
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fit_branches", "fitting"):
        monkeypatch.setattr(f"vit2snn.convert.{module}.STEPS", 2)
    for module in ("fit_branches", "fit_spikes", "fitting", "trials"):
        monkeypatch.setattr(f"vit2snn.convert.{module}.BATCH", 4)


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict(chain(network.named_parameters(), network.named_buffers()))


def test_the_accelerator_refuses_what_a_device_would() -> None:
    there = torch.randn(3)
    with Accelerator():
        assert (there * torch.tensor(2.0) + there.new_ones(3)).shape == (3,)
        assert there[torch.arange(2)].shape == (2,)
        assert (torch.zeros(3).to(there.device) + there).shape == (3,)
        for operation in (lambda: there + torch.zeros(3), lambda: there @ (2 * torch.ones(3)), lambda: there + there.cpu()):
            with pytest.raises(RuntimeError, match="on the CPU and on the device"):
                operation()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_nothing_is_made_elsewhere_than_where_the_ann_is(recipe: Recipe) -> None:
    snn = structure(make_vit().to("meta"), recipe, SIZE)
    assert {name: x.device.type for name, x in tensors(snn.network).items() if not x.is_meta} == {}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", DRIVEN.values(), ids=DRIVEN)
def test_no_operation_has_operands_on_two_devices(recipe: Recipe, vit: nn.Module, images: Tensor) -> None:
    with Accelerator():
        to_spiking(vit, recipe, images)(images)


@pytest.mark.slow
def test_branches_are_measured_on_one_device(vit: nn.Module, images: Tensor) -> None:
    with Accelerator():
        assert len(list(candidates(vit, make_recipe(attention="auto", mlp="auto", **B), [images], count=6))) == 16  # type: ignore[arg-type]


def test_new_branches_are_the_same_wherever_the_default_device_is(vit: nn.Module) -> None:
    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(3)
        with torch.device(device):
            found.append(structure(vit, DRIVEN["interactions"], SIZE).network.state_dict())
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_network_in_double_precision_stays_in_it(recipe: Recipe, images: Tensor) -> None:
    recipe = dataclasses.replace(brief(recipe), timesteps=min(recipe.timesteps, 4))
    vit = make_vit().double()
    snn = to_spiking(vit, recipe, images.double())
    assert {p.dtype for p in snn.network.parameters()} == {torch.float64}
    assert all(x.dtype == torch.float64 for x in snn.network.buffers() if x.is_floating_point())
    with torch.no_grad():
        assert snn(images.double()).dtype == torch.float64
        torch.testing.assert_close(snn.ann(images.double()), vit(images.double()))


@torch.no_grad()
def error(snn: SpikingModel, images: Tensor) -> float:
    """Of the logits, relative."""
    wanted = snn.ann(images).float()
    return float((snn(images)[-1].float() - wanted).norm() / wanted.norm())


IN_SINGLE: dict[Recipe, float] = {}
"""That error in single precision."""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", DRIVEN.values(), ids=DRIVEN)
def test_half_precision_converts_and_neurons_keep_float32(recipe: Recipe, dtype: torch.dtype, images: Tensor) -> None:
    snn = to_spiking(make_vit().to(dtype), recipe, images.to(dtype))
    own = {x for module in snn.network.modules() if isinstance(module, FullPrecision) for x in tensors(module).values()}
    kept = {x for x in own if x.is_floating_point()}
    assert all(x.dtype == torch.float32 for x in kept)
    assert all(x.dtype == dtype for x in tensors(snn.network).values() if x.is_floating_point() and x not in kept)
    with torch.no_grad():
        assert snn(images.to(dtype)).dtype == dtype
    # Regression knows a dozen images by heart, down to single spikes, which rounding moves.
    unseen = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    if recipe not in IN_SINGLE:
        IN_SINGLE[recipe] = error(to_spiking(make_vit(), recipe, images), unseen)
    assert error(snn, unseen.to(dtype)) < 1.3 * IN_SINGLE[recipe]


@pytest.mark.slow
def test_fitting_leaves_the_ann_as_it_is(images: Tensor) -> None:
    vit = make_vit().train()
    before = copy.deepcopy(vit.state_dict())
    list(candidates(vit, make_recipe(mlp="auto", **B), [images], count=6))
    assert vit.training and all(module.training for module in vit.modules())
    ann = copy.deepcopy(vit).eval().requires_grad_(False)
    for recipe in DRIVEN.values():
        to_spiking(ann, recipe, images)
        to_spiking(vit, recipe, images)
        for model in (vit, ann):
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert not any(module.training for module in ann.modules())
