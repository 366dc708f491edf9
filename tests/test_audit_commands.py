"""Auditing, recommending T, early exits and the report, on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from test_cli import fails, folder, run  # noqa: F401  (folder is a fixture)

import vit2snn.zoo
from vit2snn.storage import save_model


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "snn"
    assert run("convert", "demo", "-o", out, "--samples", 32, "--timesteps", 2).exit_code == 0
    return out


def test_the_first_line_says_it_in_one_sentence(converted: Path) -> None:
    result = run("audit", converted, "--samples", 4)
    assert result.exit_code == 0, result.output
    sentence, *lines = result.stdout.splitlines()
    assert "% of the operations of this network are additions" in sentence and sentence.endswith(".")
    rows = [line for line in lines if line.startswith(("module", "blocks", "patch_embed", "norm", "head"))]
    assert max(map(len, rows)) <= 80
    assert len({row.find("geometric") for row in rows if "geometric" in row}) == 1  # in one column
    assert lines[-1] == "seen on 4 images, T = 2"


def test_the_document_says_it_of_every_operation(converted: Path) -> None:
    document = json.loads(run("audit", converted, "--samples", 2, "--timesteps", 1, "--replay", "--json").stdout)
    assert document["timesteps"] == 1 and document["images"] == 2
    rows = {(row["module"], row["function"]): row for row in document["operations"]}
    assert rows["blocks.*.mlp.fc1", "linear"]["addition_only"]
    assert not rows["blocks.*.mlp.act", "gelu"]["addition_only"]
    assert document["replay"]["difference"] < 1e-13 and document["replay"]["left"] == []


def test_a_network_that_multiplies_does_not_pass_the_gate(converted: Path) -> None:
    result = run("audit", converted, "--samples", 2, "--require", "addition-only")
    assert result.exit_code == 3
    assert "operations multiply, most of all blocks.*.mlp.act" in result.stderr
    assert "of the operations of this network" in result.stdout  # the audit is printed all the same


def test_models_of_the_zoo_are_audited_and_reported(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    assert "spikformer_4_256_cifar10" in vit2snn.zoo.VARIANTS
    model = timm.create_model("spikformer_4_256_cifar10", dim=32, depth=1, num_heads=4).eval()
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 32, 32))
    out = tmp_path / "zoo"
    save_model(model.eval(), out)
    fails(2, "--data DATA", "audit", out)
    data = ("--data", folder, "--samples", 6)
    result = run("audit", out, *data)
    assert result.exit_code == 0, result.output
    assert "numbers that meet weights" in result.stdout.splitlines()[0]
    fails(1, "holds no evaluation", "report", out)
    fails(2, "--max-drop compares with an ANN", "evaluate", out, *data, "--max-drop", "0.5")
    fails(1, "no calibration of early exits", "evaluate", out, *data, "--exit-confidence", "0.5")
    dear = run("evaluate", out, *data, "--max-energy", "0.001")
    assert dear.exit_code == 3 and "of the energy of one pass on numbers is needed" in dear.stderr
    assert "recommended: T = " in run("evaluate", out, *data, "--max-energy", "0.9").stdout
    assert run("report", out).exit_code == 0
    assert "spikformer_4_256_cifar10" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_t_is_recommended_within_budgets(converted: Path) -> None:
    scored = ("evaluate", converted, "--samples", 30)
    found = json.loads(run(*scored, "--max-drop", 100, "--json").stdout)
    assert found["recommended"] == 1
    energies = [point["energy"] for point in found["snn"]]
    assert "recommended: T = 1" in run(*scored, "--max-energy", (energies[0] + energies[1]) / 2).stdout
    result = run(*scored, "--max-energy", 0.001)
    assert result.exit_code == 3
    assert "no T keeps to --max-energy 0.001: at T = 2" in result.stderr


def test_early_exits_stand_beside_the_curve(converted: Path) -> None:
    result = run("evaluate", converted, "--samples", 30, "--exit-confidence", 0.9)
    assert "early exit at confidence 0.9: top-1" in result.stdout
    written = json.loads((converted / "evaluation.json").read_text())
    assert 1 <= written["exit"]["timesteps"] <= 2
    assert written["exit"]["energy"] <= written["snn"][-1]["energy"]
    fails(2, "'--exit-confidence'", "evaluate", converted, "--exit-confidence", 1.5)


def test_the_report_is_written_and_a_bad_one_keeps_the_old(converted: Path) -> None:
    assert run("evaluate", converted, "--samples", 30).exit_code == 0
    document = json.loads(run("report", converted, "--json").stdout)
    page = Path(document["page"])
    assert page == converted / "report.html" and 1e6 < document["bytes"] == page.stat().st_size < 6e6
    before = page.read_bytes()
    evaluation = json.loads((converted / "evaluation.json").read_text())
    evaluation["snn"][1]["top1"] = float("nan")
    (converted / "evaluation.json").write_text(json.dumps(evaluation))
    fails(1, "snn[1].top1: expected a finite number, got nan", "report", converted)
    assert page.read_bytes() == before


def test_logits_that_are_not_finite_are_told(converted: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(converted, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["head.bias"][0] = float("inf")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    fails(1, "logits of some images are not finite", "evaluate", broken, "--samples", 20)
