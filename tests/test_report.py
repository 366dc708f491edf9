from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import make_recipe, make_vit
from test_zoo import small

from vit2snn.commands.report import report
from vit2snn.convert import RECIPES, Recipe, to_spiking
from vit2snn.errors import ArtifactError
from vit2snn.measure import evaluate
from vit2snn.measure.report import report_page
from vit2snn.measure.report.charts import pareto_front
from vit2snn.measure.report.markup import embedded, html
from vit2snn.storage import save, save_model
from vit2snn.storage.artifact import SCHEMA
from vit2snn.storage.documents import read_artifacts
from vit2snn.storage.evaluations import write_evaluation

RATES = {"patch_embed.proj.neuron": [0.5, 0.25], "blocks.0.attn.spiking_attention.query": [0.125, 0.75], "head.neuron": [0, 1]}
ERRORS = {
    "head.neuron": [0.4, 0.05],
    "patch_embed.proj.neuron": [0.9, 0.02],
    "blocks.0.attn.spiking_attention.query": [1.1, 0.3],
}


def evaluation() -> dict[str, Any]:
    """A whole evaluation.json, by hand."""
    neurons = [
        {"neuron": name, "kind": "ternary", "copies": 1, "elements": 8, "rate": list(rate)} for name, rate in RATES.items()
    ]
    row = {"module": "head", "function": "linear", "kind": "weighted", "operands": ["ternary"], "copies": 3}
    return {
        "output": "classes",
        "images": 50,
        "digest": "d16e57",
        "calibration": {"images": 32, "scored": 0},
        "ann": {"top1": 80.0},
        "snn": [
            {"timestep": t, "top1": top1, "agreement": top1 + 10, "relative_error": 0.1, "spikes_per_neuron": 1.0,
             "operations": 1.0, "energy": energy, "latency": t}
            for t, top1, energy in ((1, 60.0, 0.25), (2, 78.0, 0.5))
        ],
        "exit": {"top1": 77.0, "agreement": 88.0, "energy": 0.3, "timesteps": 1.25},
        "modules": [
            {"name": name, "module": name.rsplit(".", 1)[0], "relative_error": list(error), "spikes_per_neuron": 1.5,
             "saturation": [] if name == "head.neuron" else [0.25, 0.0], "dead": 0.0}
            for name, error in sorted(ERRORS.items(), key=lambda item: -item[1][-1])
        ],
        "advice": [{"finding": "values saturate", "action": "raise headroom"}],
        "audit": {
            "sentence": "97.1 % of the operations are additions.", "additions": 0.971, "timesteps": 2, "images": 8,
            "operations": [row | {"accumulates": 12345.0, "multiplies": 678.0, "addition_only": False}],
        },
        "costs": {
            "operations": [], "neurons": neurons, "convention_uj": 17.25,
            "energy": [{"name": "45 nm float32", "snn_uj": [10.0, 20.5], "ann_uj": 41.5}],
            "memory_estimate_uj": {"snn": [3.0, 90.0], "ann": [2.0, 70.0]},
        },
    }  # fmt: skip


def written(folder: Path, source: str = "demo", recipe: Recipe | None = None, **changed: Any) -> Path:
    """The folder of a converted model without its weights, and an evaluation with some parts changed (None: left out)."""
    folder.mkdir(parents=True)
    section = {
        "schema": SCHEMA, "source": source, "builder": None, "recipe": (recipe or Recipe()).to_json(), "input_size": [3, 8, 8],
        "teacher": None, "dtype": "float32", "unfused": [], "handlers": [], "versions": {"torch": "2.9"},
    }  # fmt: skip
    document = evaluation() | changed
    documents = {
        "config.json": {
            "architecture": "vit_tiny", "num_classes": 10, "model_args": {"depth": 1}, "pretrained_cfg": {}, "vit2snn": section,
        },
        "conversion.json": [
            {"name": "head", "source": "Linear", "result": "SpikingLinear", "action": "spiking", "macs": 1_500_000},
            {"name": "norm", "source": "LayerNorm", "result": "LayerNorm", "action": "analog", "macs": 0},
        ],
        "run.json": {"command": ["vit2snn", "convert", "a b"], "seed": 7, "seconds": 12.5},
        "evaluation.json": {name: part for name, part in document.items() if part is not None},
    }  # fmt: skip
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def page(*folders: Path) -> str:
    return report_page(read_artifacts(folders))


class Parsed(HTMLParser):
    """The page's text by line, the attributes of its elements, and its charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[dict[str, Any]] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.lines).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if attributes.get("type") == "application/json" and data.strip():
            self.figures.append(json.loads(data))
        elif tag not in ("script", "style"):
            self.lines.append(data)


def test_the_page_tells_everything_that_was_measured(tmp_path: Path) -> None:
    parsed = Parsed(page(written(tmp_path / "one", command=["vit2snn", "evaluate", "a b"])))
    for told in (
        "demo as a spiking network",
        "97.1 % of the operations are additions.",
        "demo (vit_tiny) · recipe faithful · T = 2 · 50 images scored · ANN top-1 80.0 % · image set d16e57",
        "top-1 at T = 2 78.0 %", "agreement with ANN 88.0 %", "energy, of the ANN's 50 %", "energy, early exits 30 %",
        "SNN, T = 2 ANN compute only 45 nm float32 20.5 41.5 convention of the papers 17.2 —",
        "memory traffic, an estimate least to most 3.00 to 90.0 2.00 to 70.0",
        "values saturate raise headroom",
        "head linear ternary 3 no 12,345 678 100 %",
        "head Linear SpikingLinear spiking 1.500",
        "Calibrated on 32 images, none of which was scored",
        "made by vit2snn convert 'a b'", "scored by vit2snn evaluate 'a b'", "seed 7", "seconds to make 12.5", "torch 2.9",
    ):  # fmt: skip
        assert told in parsed.text
    assert "Warning" not in parsed.text
    assert "Each layer takes its T timesteps" not in parsed.text


def test_module_rows_carry_the_numbers_that_they_are_sorted_by(tmp_path: Path) -> None:
    parsed = Parsed(page(written(tmp_path / "one")))
    values = [attributes["data-value"] for tag, attributes in parsed.elements if "data-value" in attributes]
    rows = [values[i : i + 4] for i in range(0, len(values), 4)]  # error, saturated, dead, spikes
    assert rows == [["0.3", "0.25", "0.0", "1.5"], ["0.05", "", "0.0", "1.5"], ["0.02", "0.25", "0.0", "1.5"]]
    bars = [attributes["style"] for tag, attributes in parsed.elements if attributes.get("class") == "number bar"]
    assert bars == ["--share: 1.0000", "--share: 0.1667", "--share: 0.0667"]


def test_charts_hold_the_curves_the_front_the_rates_and_the_worst_errors(tmp_path: Path) -> None:
    curves, energy, firing, errors = Parsed(page(written(tmp_path / "one"))).figures
    top1, agreement, ann = curves["data"]
    assert (top1["x"], top1["y"], agreement["y"]) == ([1, 2], [60.0, 78.0], [70.0, 88.0])
    assert ann["y"] == [80.0, 80.0] and ann["line"]["dash"] == "dash"
    points, star, front, reference = energy["data"]
    assert (points["x"], points["y"]) == ([25.0, 50.0], [60.0, 78.0])
    assert (star["x"], star["y"], star["marker"]["symbol"]) == ([30.0], [77.0], "star")
    assert (front["x"], front["y"], front["line"]["shape"]) == ([25.0, 30.0, 50.0, 50.0], [60.0, 77.0, 78.0, 78.0], "hv")
    assert (reference["x"], reference["y"]) == ([100], [80.0])
    assert firing["data"][0]["z"] == list(RATES.values())
    assert firing["layout"]["yaxis"]["ticktext"] == ["patch_embed.proj", "0.attn.query", "head"]
    assert [trace["name"] for trace in errors["data"]] == ["0.attn.query", "head", "patch_embed.proj"]
    assert errors["layout"]["yaxis"]["type"] == "log"


def test_several_artifacts_share_the_charts_that_compare(tmp_path: Path) -> None:
    better = evaluation()["snn"]
    better[1]["top1"] = 79.0
    one, two = written(tmp_path / "a" / "x"), written(tmp_path / "b" / "x", snn=better, exit=None)
    parsed = Parsed(page(one, two))
    assert parsed.text.count("97.1 % of the operations are additions.") == 2
    assert "demo as 2 spiking networks" in parsed.text
    curves, energy, *_ = parsed.figures
    assert [trace["name"] for trace in curves["data"]] == [str(one), str(two)] * 2 + ["ANN 80.0 %"]  # both are called x
    assert energy["data"][3]["y"] == [60.0, 77.0, 79.0, 79.0]
    assert sum(tag == "details" and attributes.get("class") == "artifact" for tag, attributes in parsed.elements) == 2


def test_pareto_front_keeps_what_nothing_betters() -> None:
    assert pareto_front([(3, 9), (1, 5), (2, 4), (2, 7), (1, 6), (4, 9)]) == [(1, 6), (2, 7), (3, 9)]


def test_layer_synchronous_networks_are_told_apart(tmp_path: Path) -> None:
    points = evaluation()["snn"]
    points[1]["latency"] = 40
    folder = written(tmp_path / "one", recipe=RECIPES["ternary-synchronous"], snn=points)
    parsed = Parsed(page(folder))
    assert "T = 2 per layer, 40 in all" in parsed.text
    assert "recipe ternary-synchronous" in parsed.text
    assert parsed.text.count("Each layer takes its T timesteps before the next one begins") == 2
    assert parsed.figures[0]["data"][0]["customdata"] == ["1", "2 per layer, 40 in all"]
    assert "in a run of T" in parsed.figures[2]["data"][0]["hovertemplate"]
    saturated = [attributes.get("data-value") for _, attributes in parsed.elements if "data-value" in attributes][1]
    assert saturated == "0.0"  # that of the whole run, not of a shorter one


def test_scored_calibration_images_are_warned_of(tmp_path: Path) -> None:
    parsed = Parsed(page(written(tmp_path / "one", calibration={"images": 32, "scored": 5})))
    assert "Warning: 5 of the 32 calibration images were scored too" in parsed.text


def test_a_recipe_without_a_name_is_told_by_its_main_fields(tmp_path: Path) -> None:
    halves = {"first half": "qk-token+conv", "second half": "ssa"}
    recipe = make_recipe(attention=halves, mlp="relu", neuron="plif", norm="static", refit="none")
    parsed = Parsed(page(written(tmp_path / "one", recipe=recipe)))
    branches = "structure.attention first half qk-token+conv / second half ssa, structure.mlp relu"
    assert f"recipe of its own: {branches}, structure.norm static, spikes.neuron plif" in parsed.text


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", modules=None, advice=None, exit=None)
    parsed = Parsed(page(folder))
    assert "Diagnosis" not in parsed.text and "Errors by module" not in parsed.text and "early exits" not in parsed.text
    assert len(parsed.figures) == 3


def test_text_from_files_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    modules = evaluation()["modules"]
    modules[0]["name"] = modules[0]["module"] = f"</script><b>%{{x}}{evil}"
    folder = written(tmp_path / "one", source=evil, modules=modules, advice=[{"finding": evil, "action": "</script>"}])
    text = page(folder)
    assert evil not in text
    parsed = Parsed(text)
    assert f"{evil} (vit_tiny)" in parsed.text and f"{evil} </script>" in parsed.text
    scripts = [attributes for tag, attributes in parsed.elements if tag == "script"]
    assert len(scripts) == len(parsed.figures) + 2  # plotly, and the page's own
    trace = parsed.figures[3]["data"][0]
    assert trace["meta"] == "&lt;/script&gt;&lt;b&gt;%{x}&lt;script&gt;alert(1)&lt;/script&gt;"
    assert "alert" not in trace["hovertemplate"]


def test_embedded_json_cannot_end_its_element() -> None:
    text = json.dumps({"name": "</script><!--<script>"})
    (found,) = re.findall("<script.*?>(.*?)</script>", html([embedded(text)]))
    assert json.loads(found) == json.loads(text)


def test_the_page_is_whole_and_small(tmp_path: Path) -> None:
    text = page(written(tmp_path / "one"))
    assert len(text.encode()) < 6_000_000
    for tag, attributes in Parsed(text).elements:
        assert "src" not in attributes, tag
        assert not (attributes.get("href") or "data:").startswith("http"), tag
    assert "default-src 'none'" in text


@pytest.mark.parametrize("part", ["audit", "costs"])
def test_an_evaluation_of_an_older_version_is_refused(tmp_path: Path, part: str) -> None:
    folder = written(tmp_path / "one", source="vit", **{part: None})
    with pytest.raises(ArtifactError, match=f"evaluation.json' is damaged: the document has no '{part}'") as error:
        read_artifacts([folder])
    assert error.value.hint == f"run: vit2snn evaluate {folder} --data DATA"


def test_a_damaged_evaluation_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    rows = evaluation()["modules"]
    del rows[1]["dead"]
    with pytest.raises(ArtifactError, match=r"evaluation.json' is damaged: modules\[1\] has no 'dead'"):
        read_artifacts([written(tmp_path / "one", modules=rows)])
    with pytest.raises(ArtifactError, match=r"evaluation.json' is damaged: costs\.energy\[0\] has no 'ann_uj'"):
        read_artifacts([written(tmp_path / "two", costs=evaluation()["costs"] | {"energy": [{"name": "a", "snn_uj": [1.0]}]})])


def test_a_folder_without_model_or_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no folder"):
        read_artifacts([tmp_path / "nowhere"])
    with pytest.raises(ArtifactError, match="is not a converted model") as error:
        read_artifacts([tmp_path])
    assert "vit2snn convert" in error.value.hint
    folder = written(tmp_path / "an snn")
    (folder / "evaluation.json").unlink()
    with pytest.raises(ArtifactError, match="holds no evaluation") as error:
        read_artifacts([folder])
    assert error.value.hint == f"run: vit2snn evaluate '{folder}'"


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "cannot be read"), ("[]", "is damaged: the document: expected object, got array")]
)
def test_an_unreadable_evaluation_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    folder = written(tmp_path / "one")
    (folder / "evaluation.json").write_text(text)
    with pytest.raises(ArtifactError, match=f"evaluation.json.* {reason}") as error:
        read_artifacts([folder])
    assert error.value.hint == f"run: vit2snn evaluate {folder}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name_and_timestep(tmp_path: Path, value: float) -> None:
    points = evaluation()["snn"]
    points[1]["energy"] = value
    with pytest.raises(
        ArtifactError, match=rf"evaluation.json' is damaged: snn\[1\]\.energy: expected a finite number, got {value}"
    ):
        read_artifacts([written(tmp_path / "one", snn=points)])
    modules = evaluation()["modules"]
    modules[2]["relative_error"][0] = value
    with pytest.raises(ArtifactError, match=rf"modules\[2\]\.relative_error\[0\]: expected a finite number, got {value}"):
        read_artifacts([written(tmp_path / "two", modules=modules)])


def test_different_models_and_different_images_are_not_compared(tmp_path: Path) -> None:
    one, other = written(tmp_path / "one"), written(tmp_path / "other", source="vit_b")
    with pytest.raises(ArtifactError, match=r"one' and .*other' differ in the model: demo \(vit_tiny\) and vit_b \(vit_tiny\)"):
        read_artifacts([one, other])
    third = written(tmp_path / "third", digest="0123")
    with pytest.raises(ArtifactError, match=r"one' and .*third' differ in the scored images \(digest\): d16e57 and 0123"):
        read_artifacts([one, third])


def test_what_evaluate_writes_is_what_the_report_reads(tmp_path: Path) -> None:
    images = torch.randn(6, 3, 16, 16)
    snn = to_spiking(make_vit(depth=1), make_recipe(timesteps=2, levels=3), images)
    save(snn, tmp_path / "out", source="vit")
    write_evaluation(evaluate(snn, [(images, torch.arange(6))]), tmp_path / "out", command=["vit2snn", "evaluate", "out"])
    parsed = Parsed(page(tmp_path / "out"))
    assert "Warning: 6 of the 6 calibration images were scored too" in parsed.text
    assert "scored by vit2snn evaluate out" in parsed.text
    assert parsed.figures[2]["layout"]["yaxis"]["ticktext"][:2] == ["patch_embed.proj", "0.attn.qkv"]


def test_a_zoo_model_has_the_sections_that_apply(tmp_path: Path) -> None:
    model, images = small("qkformer_4_384_cifar10")
    save_model(model, tmp_path / "out")
    with pytest.raises(ArtifactError) as error:
        read_artifacts([tmp_path / "out"])
    assert error.value.hint.endswith("--data DATA")
    write_evaluation(evaluate(model, [(images, torch.arange(4))]), tmp_path / "out")
    parsed = Parsed(page(tmp_path / "out"))
    assert len(parsed.figures) == 3
    assert "qkformer_4_384_cifar10 as a spiking network" in parsed.text
    assert "energy, of one pass on numbers" in parsed.text
    for word in ("ANN", "Calibrat", "Errors by module", "Plan"):
        assert word not in parsed.text


def test_the_command_writes_into_the_folder_of_one_and_beside_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(report, ["one", "--json"])
    document = json.loads(result.stdout)
    assert document["page"] == "one/report.html"
    assert document["artifacts"] == [{"name": "one", "folder": "one"}]
    assert (one / "report.html").stat().st_size == document["bytes"]
    assert "report.html (4." in CliRunner().invoke(report, ["one", "two"]).stdout
    assert (tmp_path / "report.html").is_file()
    CliRunner().invoke(report, ["two", "-o", "named.html"])
    assert (tmp_path / "named.html").is_file() and not (two / "report.html").exists()


def test_a_failure_keeps_the_page_that_was_there(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", costs=None)
    (folder / "report.html").write_text("before")
    assert isinstance(CliRunner().invoke(report, [str(folder)]).exception, ArtifactError)
    assert (folder / "report.html").read_text() == "before"


def test_the_command_line_does_not_import_plotly_before_it_draws() -> None:
    code = "import sys, vit2snn.cli, vit2snn.commands.report; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
