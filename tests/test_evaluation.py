from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from conftest import make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.convert import RECIPES, Recipe, SpikingModel, load_model, to_spiking
from vit2snn.convert.conversion import structure
from vit2snn.errors import DataError
from vit2snn.measure import Evaluation, diagnose, evaluate
from vit2snn.storage.evaluations import write_evaluation

Sample = tuple[Tensor, Tensor, Tensor]


def loader(images: Tensor, labels: Tensor, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))


@pytest.fixture
def labels(images: Tensor) -> Tensor:
    return torch.arange(len(images)) % 7


@pytest.fixture
def snn(vit: nn.Module, images: Tensor) -> SpikingModel:
    return to_spiking(vit, make_recipe(timesteps=3, levels=3), images)


@torch.no_grad()
def test_every_figure_equals_the_one_computed_by_hand(
    snn: SpikingModel, vit: nn.Module, images: Tensor, labels: Tensor
) -> None:
    result = evaluate(snn, loader(images, labels))
    ann, readout = vit(images), snn(images)
    assert result.images == len(images)
    assert result.ann_top1 == pytest.approx(100 * float((ann.argmax(1) == labels).float().mean()))
    assert [point.timestep for point in result.points] == [1, 2, 3]
    for point, logits in zip(result.points, readout, strict=True):
        assert point.top1 == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
        assert point.agreement == pytest.approx(100 * float((logits.argmax(1) == ann.argmax(1)).float().mean()))
        assert point.relative_error == pytest.approx(float((logits - ann).norm() / ann.norm()), rel=1e-4)


@torch.no_grad()
def test_spikes_are_the_changes_of_the_decoded_values(vit: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Without biases a differential neuron's decoded value changes exactly when it sends a spike."""
    snn = to_spiking(vit, make_recipe(timesteps=3, levels=3, input_spikes=1, prior="none", bias=False), images)
    result = evaluate(snn, [(images, labels)])
    decoded: dict[str, list[Tensor]] = {}
    for name, neuron in snn.neurons().items():
        neuron.register_forward_hook(lambda module, inputs, output, name=name: decoded.setdefault(name, []).append(output))
    snn(images, 3, chunk=1)
    spikes, neurons = torch.zeros(3), 0
    for name in snn.neurons():
        steps = torch.stack(decoded[name])
        before = torch.cat([torch.zeros_like(steps[:1]), steps[:-1]])
        spikes += (steps != before).flatten(1).sum(1)
        neurons += steps[0].numel()
    assert [p.spikes_per_neuron for p in result.points] == pytest.approx((spikes.cumsum(0) / neurons).tolist(), rel=1e-5)


def test_bursts_count_every_spike(vit: nn.Module, images: Tensor, labels: Tensor) -> None:
    one = make_recipe(timesteps=1, levels=8)
    single = evaluate(to_spiking(vit, one, images), [(images, labels)]).points[0]
    double = evaluate(to_spiking(vit, one.changed(spikes_per_step=2), images), [(images, labels)]).points[0]
    assert single.spikes_per_neuron < double.spikes_per_neuron <= 2
    assert double.relative_error < single.relative_error


def test_bursts_may_be_those_of_the_image_or_of_attention_alone(vit: nn.Module) -> None:
    snn = structure(vit, make_recipe(input_spikes=2, attention_spikes=3), (3, 16, 16))
    longest = {name: neuron.spikes_per_step for name, neuron in snn.neurons().items()}
    assert longest.pop("patch_embed.proj.neuron") == 2
    assert [longest.pop(f"blocks.{block}.attn.spiking_attention.weights") for block in (0, 1)] == [3, 3]
    assert set(longest.values()) == {1}


def test_timesteps_are_reported_as_asked(snn: SpikingModel, images: Tensor, labels: Tensor) -> None:
    whole = evaluate(snn, loader(images, labels), 6)
    assert [point.timestep for point in whole.points] == [1, 2, 3, 4, 5, 6]
    some = evaluate(snn, loader(images, labels), [4, 2, 6])
    assert list(some.points) == [whole.points[1], whole.points[3], whole.points[5]]
    assert [point.timestep for point in evaluate(snn, loader(images, labels), [2]).points] == [2]
    for impossible in (0, [], [0, 1]):
        with pytest.raises(ValueError, match="timesteps must be at least 1"):
            evaluate(snn, loader(images, labels), impossible)


def test_the_size_of_batches_does_not_matter() -> None:
    images = torch.randn(12, 3, 16, 16, dtype=torch.float64)
    labels = torch.arange(12) % 7
    snn = to_spiking(make_vit().double(), Recipe(timesteps=3), images)
    results = [evaluate(snn, loader(images, labels, size)).points for size in (1, 5, 12)]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.to_json() == pytest.approx(b.to_json(), rel=1e-9)


@torch.no_grad()
def test_module_errors_are_sorted_and_equal_those_computed_by_hand(snn: SpikingModel, vit: nn.Module, images: Tensor) -> None:
    rows = diagnose(snn, images, 3)
    assert [row.relative_error[-1] for row in rows] == sorted((row.relative_error[-1] for row in rows), reverse=True)
    assert {row.name for row in rows} == set(snn.neurons())
    head = next(row for row in rows if row.name == "head.neuron")
    assert head.module == "head"
    expected = vit.forward_head(vit.forward_features(images), pre_logits=True)
    found: list[Tensor] = []
    snn.network.head.neuron.register_forward_hook(lambda module, inputs, output: found.append(output))
    snn(images, 3)
    decoded = found[-1].unflatten(0, (3, -1))
    errors = [float((step - expected).norm() / expected.norm()) for step in decoded]
    assert head.relative_error == pytest.approx(errors, rel=1e-3)


def test_nothing_to_score_and_foreign_labels_are_told(snn: SpikingModel, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(DataError, match="no images to score"):
        evaluate(snn, [])
    with pytest.raises(DataError, match="labels from 0 to 17 for a model of 7 classes"):
        evaluate(snn, [(images, torch.where(labels == 6, 17, labels))])


def test_the_files_hold_the_figures(snn: SpikingModel, images: Tensor, labels: Tensor, tmp_path: Path) -> None:
    result: Evaluation = evaluate(snn, loader(images, labels))
    write_evaluation(result, tmp_path, title="a < b & c", command=["vit2snn", "evaluate"])
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(result.to_json())) | {"command": ["vit2snn", "evaluate"]}
    with (tmp_path / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == [p.to_json() for p in result.points]
    assert ElementTree.parse(tmp_path / "curve.svg").getroot().tag.endswith("svg")


# On the embedded demo


@pytest.mark.slow
def test_the_error_on_the_demo_falls_with_every_timestep(demo_sample: Sample) -> None:
    calibration, images, labels = demo_sample
    snn = to_spiking(load_model("demo"), Recipe(timesteps=8), calibration)
    points = evaluate(snn, [(images, labels)]).points
    errors = [point.relative_error for point in points]
    assert errors == sorted(errors, reverse=True)
    assert errors[4] < 1e-3 and errors[7] < 2e-4
    assert points[0].agreement >= 94
    assert points[3].agreement >= 99
    assert points[3].spikes_per_neuron < 3


@pytest.mark.slow
def test_a_third_of_the_error_of_the_published_rule_with_fewer_spikes(demo_sample: Sample) -> None:
    """The thresholds of DCGS in our own terms (see ``benchmarks/faithful.py``)."""
    calibration, images, labels = demo_sample
    plain = {"thresholds": "static", "observer": "percentile", "prior": "none", "bias": False, "input_spikes": 1}
    dcgs = make_recipe(coding="decaying", levels=8, ratio=2.0, headroom=4.0, **plain)  # type: ignore[arg-type]
    ours, theirs = (
        evaluate(to_spiking(load_model("demo"), recipe, calibration), [(images, labels)]).points
        for recipe in (make_recipe(price=3e-11), dcgs)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.relative_error < other.relative_error / 3
        assert mine.spikes_per_neuron < other.spikes_per_neuron
        assert other.relative_error < 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("ternary", 0.05),
        ("binary", 0.3),
        ("ternary-synchronous", 0.05),
        ("ternary-stepwise", 0.2),
        ("binary-rate", 0.3),
    ],
)
def test_the_other_recipes_work_on_the_demo(name: str, error: float, demo_sample: Sample) -> None:
    calibration, images, labels = demo_sample
    snn = to_spiking(load_model("demo"), RECIPES[name], calibration[:32])
    points = evaluate(snn, [(images[:40], labels[:40])], [snn.recipe.timesteps // 2, snn.recipe.timesteps]).points
    assert points[1].relative_error < error
    assert points[1].relative_error < points[0].relative_error
    assert points[1].agreement >= 90
