"""The host waits for no GPU in a loop over batches or timesteps: statistics stay on the device until they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accelerator import Accelerator
from conftest import brief, make_recipe, make_vit
from torch import Tensor

from vit2snn.calibration.activity import observe
from vit2snn.convert import RECIPES, Recipe, SpikingModel, to_spiking
from vit2snn.errors import DataError, ModelError
from vit2snn.measure import anytime, audit, evaluate, exit_table
from vit2snn.spiking import CodedNeuron, eager

BATCH = 6
CHEAP = ("faithful", "frugal", "ternary", "ternary-synchronous", "binary", "shift")
CONVERTED: dict[str, Recipe] = {
    **{name: RECIPES[name] for name in CHEAP},
    "priced": make_recipe(price=1e-6),
    "by channel": make_recipe(granularity="channel", ratio=2.0),
    "percentile": make_recipe(observer="percentile", thresholds="static"),
    "entropy": make_recipe(observer="entropy", levels=2),
}
SCORED = {name: RECIPES[name] for name in ("faithful", "binary", "ternary-synchronous", "qkformer", "spike-driven")}


def waited(call: Callable[..., object], *given: Any) -> Counter[str]:
    """What the host waits for in a call, apart from the data that are given, and from what is kept once it was read."""
    coded_step = CodedNeuron.coded_step
    accelerator = Accelerator()
    accelerator.given(*(x for batch in given for x in batch))

    def kept(neuron: CodedNeuron, t: int) -> Any:
        accelerator.counting = False
        try:
            return coded_step(neuron, t)
        finally:
            accelerator.counting = True

    with pytest.MonkeyPatch.context() as patch, eager(), accelerator.seeing_all():
        patch.setattr(CodedNeuron, "coded_step", kept)
        patch.setattr("vit2snn.convert.inputs._Spread.add", lambda spread, images: None)  # it looks at images where they lie
        for module in ("spiking.alphabet", "calibration.observers", "measure.kinds"):
            patch.setattr(f"vit2snn.{module}.is_at_hand", lambda x: x in accelerator.on_cpu)
        call()
    return accelerator.waits


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(BATCH, 3, 16, 16), torch.arange(BATCH)) for _ in range(count)]


def converted(recipe: Recipe, timesteps: int = 2) -> SpikingModel:
    return to_spiking(make_vit(), brief(recipe).changed(timesteps=timesteps), torch.randn(12, 3, 16, 16))


def convert(recipe: Recipe, count: int, timesteps: int) -> Counter[str]:
    recipe, images, vit = recipe.changed(timesteps=timesteps), [x for x, _ in batches(count)], make_vit(depth=1)
    to_spiking(vit, recipe, images)  # tables of codes, which depend on no data, are kept
    return waited(lambda: to_spiking(vit, recipe, images), images)


def score(snn: SpikingModel, count: int, timesteps: int) -> Counter[str]:
    given = batches(count)
    sure = None if snn.synchronous or timesteps > snn.timesteps else 0.5
    table = [snn.exits.sure, snn.exits.stays] if snn.exits else []
    return waited(lambda: evaluate(snn, given, timesteps, exit_confidence=sure), *given, table)


def test_it_is_seen_what_the_host_waits_for() -> None:
    there, mask, one = torch.randn(3), torch.tensor([True, False, True]), torch.tensor(1)
    waiting: list[Callable[[], object]] = [
        lambda: float(there[0]), lambda: bool(mask.all()), lambda: there.cpu(), lambda: there.tolist(), lambda: there[mask],
        lambda: there[one], lambda: mask.nonzero(), lambda: there.unique(), lambda: torch.equal(there, there),
        lambda: there.sum().item(), lambda: range(one), lambda: torch.zeros(3).to(there), lambda: there[torch.arange(2)],
        lambda: torch.tensor([1.0], device=there.device), lambda: torch.bincount(mask.int()), lambda: torch.where(mask),
    ]  # fmt: skip
    for wait in waiting:
        with Accelerator() as accelerator:
            wait()
        assert accelerator.waits.total() == 1
    going_on: list[Callable[[], object]] = [
        lambda: there.amax() + 1, lambda: there.to(there), lambda: torch.where(mask, there, 0.0), lambda: there[1:].sum(),
        lambda: float(torch.zeros(())), lambda: torch.zeros(2, device=there.device),
        lambda: there[mask.int().argmax(0, keepdim=True)],
    ]  # fmt: skip
    for go_on in going_on:
        with Accelerator() as accelerator:
            go_on()
        assert not accelerator.waits


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CONVERTED.values(), ids=CONVERTED)
def test_calibration_waits_no_longer_for_more_batches_or_timesteps(recipe: Recipe) -> None:
    few = convert(recipe, 2, 3)
    assert few  # thresholds depend on what was measured
    assert convert(recipe, 3, 5) == few


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SCORED.values(), ids=SCORED)
def test_evaluation_waits_no_longer_for_more_batches_or_timesteps(recipe: Recipe) -> None:
    snn = converted(recipe, 3)
    few = score(snn, 2, 1)
    assert few
    assert score(snn, 3, 3) == few


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 1], ids=["features", "numbers"])
def test_evaluation_of_what_is_no_class_waits_no_longer_either(classes: int) -> None:
    snn = to_spiking(make_vit(num_classes=classes), Recipe(timesteps=3), torch.randn(12, 3, 16, 16))
    few, more = batches(2), batches(3)
    assert waited(partial(evaluate, snn, few, 1), *few) == waited(partial(evaluate, snn, more, 3), *more)


def test_calibrating_exits_waits_once() -> None:
    snn = converted(RECIPES["faithful"])
    for count in (1, 3):
        images = [x for x, _ in batches(count)]
        assert waited(partial(exit_table, snn, images)) == Counter(cpu=1)


@pytest.mark.slow
def test_an_audit_waits_no_longer_for_more_batches_or_timesteps() -> None:
    snn = converted(RECIPES["faithful"])
    images = [x for x, _ in batches(3)]
    few = waited(partial(audit, snn, images[:1]))
    assert few
    assert waited(partial(audit, snn, images)) == few
    assert waited(partial(audit, snn, images[:1], 5)) == few


def test_early_exit_waits_in_each_timestep() -> None:
    """It has to know whether all images have stopped."""
    snn = converted(RECIPES["faithful"], 4)
    exits = snn.exits
    assert exits is not None
    assert waited(partial(anytime, snn, torch.randn(BATCH, 3, 16, 16), 0.99), [exits.sure, exits.stays])["__bool__"] > 1


def test_what_is_not_finite_in_a_later_batch_is_refused_all_the_same() -> None:
    snn, (*first, (images, labels)) = converted(RECIPES["faithful"]), batches(3)
    images[4, 1, 2, 3] = torch.nan
    with pytest.raises(DataError, match="the logits of some images are not finite"):
        evaluate(snn, [*first, (images, labels)])
    with pytest.raises(ModelError, match=r"reach 'patch_embed\.proj\.neuron' are not finite"):
        observe(snn.network, [*(x for x, _ in first), images], snn.neurons(), {}, {})
