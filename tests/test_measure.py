"""Measuring any spiking network: what it is given, what it leaves as it was, and what is missing without an ANN."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import brief, make_vit
from test_threads import in_threads
from test_zoo import small
from torch import Tensor, nn

from vit2snn import evaluate, to_spiking
from vit2snn.convert import Recipe
from vit2snn.errors import DataError, ModelError
from vit2snn.measure import audit, diagnose, dispatched, exit_table, replay, spent
from vit2snn.measure.text import curve_table
from vit2snn.spiking import SpikingNetwork
from vit2snn.spiking.substitutes import StaticNorm

Batches = list[tuple[Tensor, Tensor]]
NORMS = nn.BatchNorm2d, nn.LayerNorm, StaticNorm


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[SpikingNetwork, Batches]]:
    """A network of each kind, with batches to score."""
    torch.manual_seed(0)
    images, labels = torch.randn(9, 3, 16, 16), torch.arange(9) % 7
    found: dict[str, tuple[SpikingNetwork, Batches]] = {
        recipe: (to_spiking(make_vit(), brief(recipe), images), list(zip(images.split(4), labels.split(4), strict=True)))
        for recipe in ("faithful", "qkformer", "qkformer-membrane")
    }
    model, x = small("qkformer_4_384_cifar10")
    return found | {"zoo": (model, [(x, torch.arange(len(x)) % 7), (x[:1], torch.tensor([3]))])}


KINDS = pytest.mark.parametrize("kind", ["faithful", "qkformer", "qkformer-membrane", "zoo"])


@KINDS
def test_all_kinds_answer_the_same_questions(kind: str, networks: dict[str, Any]) -> None:
    network, batches = networks[kind]
    assert isinstance(network, SpikingNetwork)
    result = evaluate(network, batches)
    ann, images = kind != "zoo", sum(len(labels) for _, labels in batches)
    document = json.loads(json.dumps(result.to_json()))
    expected = {"images", "digest", "calibration", "ann", "substitute", "snn", "exit", "advice", "modules", "audit", "costs"}
    assert set(document) == expected | {"output", "contest"}
    assert document["output"] == "classes" and document["images"] == images
    assert [point["timestep"] for point in document["snn"]] == list(range(1, network.timesteps + 1))
    assert [point["latency"] for point in document["snn"]] == list(range(1, network.timesteps + 1))
    for value in (document["ann"], *(p[f] for p in document["snn"] for f in ("agreement", "relative_error"))):
        assert (value is not None) == ann
    assert (document["substitute"] is not None) == (kind == "qkformer")
    assert bool(document["modules"]) == ann == bool(document["calibration"]["images"])
    told = curve_table(result)
    assert ("agreement" in told, "ANN" in told, "one pass on numbers" in told) == (ann, ann, not ann)
    whole = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        right = (network.readout(whole).argmax(-1) == torch.cat([labels for _, labels in batches])).float().mean(1)
    assert [point.top1 for point in result.points] == pytest.approx((100 * right).tolist())
    if not ann:
        with pytest.raises(ValueError, match="no ANN to compare with"):
            result.recommended(max_drop=1)
        with pytest.raises(ModelError, match="no calibration of early exits"):
            evaluate(network, batches, exit_confidence=0.9)


def test_images_get_the_type_of_the_network(networks: dict[str, Any]) -> None:
    network, batches = networks["faithful"]
    for dtype in (torch.float64, torch.bfloat16):
        result = evaluate(copy.deepcopy(network).to(dtype), batches)
        assert result.points[-1].relative_error < 0.3
        assert result.costs.ann == evaluate(network, batches).costs.ann


def state(network: SpikingNetwork) -> list[Tensor]:
    return [value.clone() for value in network.network.state_dict().values()]


@pytest.mark.slow
@KINDS
def test_a_network_in_training_is_scored_as_one_in_evaluation_mode_and_left_as_it_was(
    kind: str, networks: dict[str, Any]
) -> None:
    network, batches = networks[kind]
    images = batches[0][0]
    calls: list[Callable[[], Any]] = [
        lambda: evaluate(network, batches).to_json(),
        lambda: audit(network, [images]).to_json(),
        lambda: replay(network, images[:1]),
        lambda: exit_table(network, [images]) and None,
    ]
    if network.reference is not None:
        calls += [lambda: diagnose(network, images), lambda: spent(network, images)]
    calls += [lambda: dispatched(network, images[0])] if kind == "faithful" else []
    wanted, before = [call() for call in calls], state(network)
    network.network.train()
    frozen = next(module for module in network.network.modules() if isinstance(module, NORMS))
    frozen.eval()
    modes = [module.training for module in network.network.modules()]
    try:
        assert [call() for call in calls] == wanted
        with pytest.raises(DataError, match="labels from 99 to 99"):
            evaluate(network, [(images, torch.full((len(images),), 99))])
        assert [module.training for module in network.network.modules()] == modes
        for value, old in zip(state(network), before, strict=True):
            assert torch.equal(value, old)
        # Weights can be trained as before: none was made in inference mode.
        network.readout(images).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        network.network.eval().zero_grad()
        network.network.load_state_dict(dict(zip(network.network.state_dict(), before, strict=True)))


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: [x, y],
        lambda x, y: (x, y, torch.arange(len(y))),
        lambda x, y: (x, y.to(torch.int32)),
        lambda x, y: (x, y.tolist()),
        lambda x, y: (x.numpy(), y.numpy()),
        lambda x, y: {"img": x.numpy(), "fine_label": y.tolist()},
        lambda x, y: {"image": x, "label": y},
        lambda x, y: {"pixel_values": x, "labels": y, "index": 0},
    ],
)
def test_batches_are_understood_in_the_forms_that_loaders_give(form: Any, networks: dict[str, Any]) -> None:
    network, batches = networks["faithful"]
    assert evaluate(network, [form(x, y) for x, y in batches], 1) == evaluate(network, batches, 1)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda x, y: x, "a batch is a Tensor, expected images and labels"),
        (lambda x, y: (x,), "a batch is a tuple of 1, expected images and labels"),
        (lambda x, y: {"image": x, "target": y}, "a batch has image, target, expected one of label, labels"),
        (lambda x, y: {}, "a batch has nothing, expected one of image, images, pixel_values"),
        (lambda x, y: (x, y[:, None]), r"labels are a tensor of shape \[4, 1\] and torch.int64, expected a tensor \[4\]"),
        (lambda x, y: (x, nn.functional.one_hot(y, 7)), r"labels are a tensor of shape \[4, 7\] and torch.int64"),
        (lambda x, y: (x, y.float()), r"labels are a tensor of shape \[4\] and torch.float32"),
        (lambda x, y: (x, y[:3]), r"labels are a tensor of shape \[3\]"),
        (lambda x, y: (x, ["cat"] * 4), "labels are a list of 4"),
        (lambda x, y: (list(x), y), r"images are a list of 4, expected a tensor \[B, C, H, W\]"),
        (lambda x, y: (x[0], y), r"images are a tensor of shape \[3, 16, 16\]"),
        (lambda x, y: (y, x), r"images are a tensor of shape \[4\] and torch.int64"),
        (lambda x, y: ((x * 255).byte(), y), "images are preprocessed"),
        (lambda x, y: (x.numpy().astype(object), y), "an array of object is no tensor"),
        (lambda x, y: (x * torch.nan, y), "logits of some images are not finite"),
    ],
)
def test_other_batches_are_refused_by_name(form: Any, message: str, networks: dict[str, Any]) -> None:
    network, batches = networks["faithful"]
    for place in ([form(*batches[0])], [batches[1], form(*batches[0])]):
        with pytest.raises(DataError, match=message):
            evaluate(network, place, 1)


def test_the_hint_says_how_labels_become_classes(networks: dict[str, Any]) -> None:
    network, ((x, y), *_) = networks["faithful"]
    for labels, hint in ((y[:, None], "labels[:, 0]"), (nn.functional.one_hot(y, 7).float(), "labels.argmax(1)")):
        with pytest.raises(DataError) as error:
            evaluate(network, [(x, labels)], 1)
        assert hint in error.value.hint


@KINDS
def test_empty_batches_and_a_last_image_by_itself_are_scored(kind: str, networks: dict[str, Any]) -> None:
    network, batches = networks[kind]
    (x, y), empty = batches[0], (batches[0][0][:0], batches[0][1][:0])
    found = evaluate(network, [empty, (x, y), empty, (x[:1], y[:1]), empty])
    assert found.images == len(x) + 1
    assert found.digest == evaluate(network, [(x, y), (x[:1], y[:1])]).digest
    assert evaluate(network, [(x[:1], y[:1])]).images == 1
    with pytest.raises(DataError, match="no images to score"):
        evaluate(network, [empty, empty])


@pytest.mark.slow
def test_networks_are_scored_in_several_threads_as_alone(networks: dict[str, Any]) -> None:
    def expecting(network: SpikingNetwork, batches: Batches) -> Callable[[], None]:
        wanted = evaluate(network, batches).to_json()

        def job() -> None:
            assert evaluate(network, batches).to_json() == wanted

        return job

    assert not in_threads(*(expecting(*pair) for pair in networks.values()), times=2)


def test_frames_run_for_all_their_timesteps_and_are_reported_as_asked() -> None:
    model, x = small("spikformer_4_384_cifar10")
    frames, labels = torch.rand(model.timesteps, *x.shape), torch.arange(len(x)) % 7
    whole = evaluate(model, [(frames, labels)])
    some = evaluate(model, [(frames, labels)], [1, model.timesteps - 1])
    assert some.points == (whole.points[0], whole.points[-2]) and some.digest == whole.digest
    assert some.audit.timesteps == model.timesteps
    model.timesteps = 0  # as many as there are frames
    assert evaluate(model, [(frames, labels)]).points == whole.points
    with pytest.raises(DataError, match="takes its timesteps from frames"):
        evaluate(model, [(x, labels)])


def test_a_network_that_is_no_classifier_is_not_scored(images: Tensor) -> None:
    snn = to_spiking(make_vit(num_classes=0, global_pool=""), Recipe(timesteps=2), images)
    with pytest.raises(DataError, match=r"the network gives \[17, 32\] numbers for an image"):
        evaluate(snn, [(images, torch.zeros(len(images), dtype=torch.int64))])
