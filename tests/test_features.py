"""Networks that put out features or a number, and classifiers of unusual heads: converted, scored, told of."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import brief, make_recipe, make_vit
from PIL import Image
from safetensors.torch import save_file
from test_zoo import small
from torch import Tensor, nn
from torch.nn import functional as F

from vit2snn import evaluate, load, to_spiking
from vit2snn.cli import cli
from vit2snn.convert import Recipe, SpikingModel
from vit2snn.errors import DataError, ModelError
from vit2snn.measure import Evaluation, anytime
from vit2snn.measure.curve import curve_svg
from vit2snn.measure.features import nearest
from vit2snn.measure.text import curve_table, drop_line, parity_table
from vit2snn.storage import save

LABELS = torch.arange(12) % 3
MAP = {"global_pool": "map", "class_token": False}


def extractor(images: Tensor, recipe: Recipe | None = None, **arguments: Any) -> tuple[SpikingModel, nn.Module]:
    ann = make_vit(num_classes=0, **arguments)
    return to_spiking(ann, recipe or make_recipe(timesteps=2, levels=2), images), ann


def by_hand(features: Tensor) -> list[int]:
    """The nearest other image of each."""
    found = []
    for i, one in enumerate(features):
        cosines = [float(F.cosine_similarity(one, other, dim=0)) if j != i else -2.0 for j, other in enumerate(features)]
        found.append(int(np.argmax(cosines)))
    return found


@pytest.mark.parametrize("recipe", ["faithful", "qkformer"])
@torch.no_grad()
def test_the_figures_of_features_equal_those_computed_by_hand(recipe: str, images: Tensor) -> None:
    snn, ann = extractor(images, brief(recipe).changed(timesteps=2))
    result = evaluate(snn, list(zip(images.split(5), LABELS.split(5), strict=True)))
    readout, wanted = snn(images), ann(images)
    near = by_hand(wanted)

    def accuracy(found: list[int]) -> float:
        return 100 * float((LABELS[found] == LABELS).double().mean())

    assert result.output == "features" and result.ann_top1 == pytest.approx(accuracy(near))
    exact = snn.exact(images)
    assert result.substitute_top1 == (None if exact is None else pytest.approx(accuracy(by_hand(exact))))
    for point, features in zip(result.points, readout, strict=True):
        found = by_hand(features)
        assert point.top1 == pytest.approx(accuracy(found))
        assert point.agreement == pytest.approx(100 * np.mean(np.equal(found, near)))
        assert point.similarity == pytest.approx(float(F.cosine_similarity(features, wanted).mean()), abs=1e-5)
        assert point.relative_error == pytest.approx(float((features - wanted).norm() / wanted.norm()), rel=1e-4)


def test_neighbours_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(20, 6)
    whole = nearest(features)
    assert whole.tolist() == by_hand(features)
    monkeypatch.setattr("vit2snn.measure.features.BLOCK", 7)
    assert torch.equal(nearest(features), whole)


def test_neighbours_are_sought_among_the_first_images(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    snn, _ = extractor(images)
    whole, first = evaluate(snn, [(images, LABELS)]), evaluate(snn, [(images[:8], LABELS[:8])])
    monkeypatch.setattr("vit2snn.measure.features.KEPT", 8)
    some = evaluate(snn, list(zip(images.split(5), LABELS.split(5), strict=True)))
    assert some.images == 12 and some.ann_top1 == first.ann_top1
    for point, of_first, of_all in zip(some.points, first.points, whole.points, strict=True):
        assert (point.top1, point.agreement) == (of_first.top1, of_first.agreement)
        assert point.similarity == pytest.approx(of_all.similarity)


@pytest.mark.parametrize("batch", ["images", "list", "dictionary", "arrays"])
def test_features_need_no_labels(batch: str, images: Tensor) -> None:
    snn, _ = extractor(images)
    given: Any = {"images": images, "list": [images], "dictionary": {"pixel_values": images}, "arrays": images.numpy()}[batch]
    bare, labelled = evaluate(snn, [given]), evaluate(snn, [(images, LABELS)])
    assert bare.ann is not None and bare.ann_top1 is None and bare.points[0].top1 is None
    assert [p.agreement for p in bare.points] == [p.agreement for p in labelled.points]
    last = bare.points[-1]
    assert last.agreement is not None and bare.lost(last) == pytest.approx(100 - last.agreement)
    assert bare.recommended(max_drop=100) == bare.points[0] and bare.recommended(max_drop=-1) is None
    assert bare.recommended(max_energy=100) == max(bare.points, key=lambda p: (p.score, -p.timestep))


def test_what_cannot_be_scored_is_told(images: Tensor) -> None:
    snn, _ = extractor(images)
    with pytest.raises(DataError, match="there is one image"):
        evaluate(snn, [images[:1]])
    for call in (lambda: evaluate(snn, [images], exit_confidence=0.9), lambda: anytime(snn, images, 0.9)):
        with pytest.raises(ModelError, match="how sure a class is, and this network puts out features"):
            call()
    classifier = to_spiking(make_vit(), make_recipe(timesteps=1), images)
    with pytest.raises(DataError, match="expected images and labels") as error:
        evaluate(classifier, [images])
    assert "num_classes = 0" in error.value.hint


def test_features_of_a_network_without_an_ann_are_scored_by_labels() -> None:
    model, x = small("qkformer_4_384_cifar10", num_classes=0)
    labels = torch.arange(len(x)) % 2
    point = evaluate(model, [(x, labels)]).points[-1]
    with torch.no_grad():
        found = by_hand(model.readout(x)[-1])
    assert point.top1 == pytest.approx(100 * float((labels[found] == labels).double().mean()))
    assert (point.agreement, point.similarity) == (None, None)
    with pytest.raises(DataError, match="features without an ANN are scored by the classes"):
        evaluate(model, [x])


def texts(result: Evaluation) -> str:
    return "\n".join([curve_table(result), parity_table(result, known=False), drop_line(result), curve_svg(result)])


def test_nothing_but_classes_is_called_top1(images: Tensor) -> None:
    snn, _ = extractor(images)
    told = texts(evaluate(snn, [(images, LABELS)]))
    assert "top-1" not in told and "ANN 1-NN accuracy" in told and "neighbour agreement %" in told and "cosine" in told
    bare = texts(evaluate(snn, [images]))
    assert "top-1" not in bare and "1-NN" not in bare and "of the images have another nearest image" in bare
    one = to_spiking(make_vit(num_classes=1), make_recipe(timesteps=2), images)
    told = texts(evaluate(one, [(images, images.mean((1, 2, 3)))]))
    assert "top-1" not in told and "agreement" not in told and "ANN mean error" in told and "correlation" in told
    classes = texts(evaluate(to_spiking(make_vit(), make_recipe(timesteps=2), images), [(images, LABELS)]))
    assert "ANN top-1" in classes and "cosine" not in classes


@torch.no_grad()
def test_the_figures_of_numbers_equal_those_computed_by_hand(images: Tensor) -> None:
    ann = make_vit(num_classes=1)
    snn, labels = to_spiking(ann, make_recipe(timesteps=2, levels=2), images), torch.randn(12)
    result = evaluate(snn, list(zip(images.split(5), labels.split(5), strict=True)))
    wanted = ann(images)[:, 0]
    assert result.output == "numbers" and result.ann is not None
    assert result.ann.mean_error == pytest.approx(float((wanted - labels).abs().mean()), rel=1e-5)
    for point, numbers in zip(result.points, snn(images)[..., 0], strict=True):
        assert point.mean_error == pytest.approx(float((numbers - labels).abs().mean()), rel=1e-5)
        assert point.similarity == pytest.approx(float(np.corrcoef(numbers, wanted)[0, 1]), abs=1e-6)
        assert (point.top1, point.agreement) == (None, None)
        assert result.lost(point) == pytest.approx((point.mean_error or 0) - (result.ann.mean_error or 0))
    bare = evaluate(snn, [images])
    last, again = result.points[-1], bare.points[-1]
    assert again.mean_error is None and again.similarity == pytest.approx(last.similarity)
    assert bare.lost(again) == pytest.approx(1 - (last.similarity or 0))
    assert json.loads(json.dumps(bare.to_json()))["ann"] == {}
    columns, listed = (evaluate(snn, [(images, given)]) for given in (labels[:, None], labels.tolist()))
    assert columns.points == listed.points
    with pytest.raises(DataError, match="with the number that is wanted of each image"):
        evaluate(snn, [(images, torch.randn(12, 2))])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {"num_classes": 0}),
        ("vit_tiny_patch16_224", MAP),
        ("vit_tiny_patch16_224", {**MAP, "num_classes": 0}),
        ("vit_tiny_patch16_224", {"num_classes": 2}),
    ],
    ids=["two heads", "features of two heads", "attention pooling", "features of attention pooling", "two classes"],
)
@torch.no_grad()
def test_heads_convert_and_come_back_from_disk(name: str, arguments: dict[str, Any], images: Tensor, tmp_path: Path) -> None:
    ann = make_vit(name, **arguments)
    snn = to_spiking(ann, make_recipe(timesteps=4, levels=8), images)
    result = evaluate(snn, [(images, LABELS % 2)])
    assert result.points[-1].relative_error is not None and result.points[-1].relative_error < 0.03
    torch.testing.assert_close(snn.ann(images), ann(images))
    save(snn, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")(images), snn(images))
    classes = arguments.get("num_classes", 7)
    assert ("features and no classes" if classes == 0 else f"{classes} classes") in (tmp_path / "out/README.md").read_text()


# On the command line


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small feature extractor of timm, and images in class folders and without."""
    place = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    write_model(place / "model", 0)
    generator = np.random.default_rng(0)
    for index in range(30):
        picture = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        for folder in (place / "flat", place / "classes" / "abc"[index % 3]):
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{index}.png")
    return place


def write_model(path: Path, classes: int, **arguments: Any) -> None:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, **arguments}
    model = make_vit(num_classes=classes, **sizes)
    cfg = {"input_size": [3, 16, 16], "fixed_input_size": True, "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": classes}
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": sizes, "num_classes": classes, "pretrained_cfg": cfg}
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("data", ["flat", "classes"])
def test_a_feature_extractor_from_conversion_to_report(data: str, place: Path, tmp_path: Path) -> None:
    out, images = tmp_path / "out", ("--data", place / data, "--workers", 0)
    model = f"local-dir:{place / 'model'}"
    converted = run("convert", model, "-o", out, *images, "--samples", 12, "--timesteps", 2)
    assert converted.exit_code == 0, converted.output
    assert "neighbour agreement %" in converted.stdout and "1-NN" not in converted.stdout
    parity = json.loads((out / "parity.json").read_text())
    assert not parity["calibration_images"] and "similarity" in parity["snn"][0]
    scored = run("evaluate", out, *images, "--json", "--max-drop", 100)
    assert scored.exit_code == 0, scored.output
    document = json.loads(scored.stdout)
    assert (document["output"], document["images"], document["recommended"]) == ("features", 18, 1)
    assert set(document["ann"]) == ({"top1"} if data == "classes" else set())
    with (out / "evaluation.csv").open() as file:
        assert [float(row["similarity"]) for row in csv.DictReader(file)] == [p["similarity"] for p in document["snn"]]
    assert run("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    page = page[: page.index("<script>")]  # without plotly
    assert "top-1" not in page and ("1-NN accuracy" in page) == (data == "classes") and "neighbour agreement" in page
    refused = run("evaluate", out, *images, "--max-drop", -101)
    assert refused.exit_code == 3
    wanted = "1-NN accuracy is" if data == "classes" else "of the images have another nearest image"
    assert wanted in refused.stderr
    if data == "flat":
        refused = run("finetune", out, *images, "-o", tmp_path / "tuned")
        assert refused.exit_code == 2 and "no classes to learn" in refused.stderr


def test_a_single_image_beside_those_of_the_calibration_is_not_compared_on(place: Path, tmp_path: Path) -> None:
    """It has no neighbours."""
    arguments = ("--data", place / "flat", "--workers", 0, "--samples", 29, "--timesteps", 1, "--json")
    converted = run("convert", f"local-dir:{place / 'model'}", "-o", tmp_path / "out", *arguments)
    assert converted.exit_code == 0, converted.output
    parity = json.loads(converted.stdout)["parity"]
    assert parity["calibration_images"] and parity["images"] == 16


def test_the_head_of_a_classifier_can_be_left_out(tmp_path: Path) -> None:
    arguments = ("--num-classes", 0, "--samples", 8, "--timesteps", 1, "--json")
    converted = run("convert", "demo", "-o", tmp_path / "out", *arguments)
    assert converted.exit_code == 0, converted.output
    assert "similarity" in json.loads(converted.stdout)["parity"]["snn"][0]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_classes"] == 0


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [(1, {}, "gives one number"), (0, {"global_pool": ""}, "gives [17, 32] numbers for an image")],
)
def test_what_the_command_line_cannot_score_is_refused_first(
    classes: int, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_model(tmp_path / "model", classes, **arguments)
    refused = run("convert", f"local-dir:{tmp_path / 'model'}", "--data", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert refused.exit_code == 1 and message in refused.stderr
