"""The whole way on the command line: convert, fine-tune, evaluate, audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from vit2snn.cli import cli

SAMPLES = ["--samples", "24", "--batch-size", "24"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def document(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "snn"
    document("convert", "demo", "--recipe", "qkformer-membrane", "--refit", "none", *SAMPLES, "-o", out)
    return out


@pytest.mark.slow
def test_a_conversion_tells_its_branches_and_keeps_the_ann(converted: Path) -> None:
    rows = {row["name"]: row for row in json.loads((converted / "conversion.json").read_text())}
    assert rows["blocks.0.attn.qkv"]["result"] == "SpikingLinear"
    assert rows["blocks.3.attn.terms.ssa.rectify_key"]["source"] == "ReLU"
    assert rows["patch_embed.proj"]["action"] == "analog"
    assert json.loads((converted / "config.json").read_text())["vit2snn"]["recipe"]["structure"]["refit"] == "none"
    card = (converted / "README.md").read_text()
    assert "if neurons" in card
    assert "softmax" not in card
    shown = document("inspect", converted)
    assert [block["attention"] for block in shown["blocks"]] == ["qk-token+ssa+conv"] * 2 + ["ssa+conv"] * 2
    scores = document("evaluate", converted, "--samples", "50")
    assert scores["ann"]["top1"] > 80
    assert {row["name"] for row in scores["modules"]} == {f"blocks.{index}" for index in range(4)}


def test_the_audit_and_its_replay_tell_what_is_multiplied(converted: Path) -> None:
    found = document("audit", converted, "--replay", "--samples", "1", "--timesteps", "1")
    assert [row["module"] for row in found["operations"] if not row["addition_only"]] == ["patch_embed.proj"]
    assert found["replay"]["difference"] < 1e-13
    assert found["replay"]["left"] == ["patch_embed.proj"]


@pytest.mark.slow
def test_fine_tuning_does_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fit_branches", "fitting"):
        monkeypatch.setattr(f"vit2snn.convert.{module}.STEPS", 20)
    rough, tuned = tmp_path / "rough", tmp_path / "tuned"
    document("convert", "demo", "--recipe", "spike-driven", "--samples", "64", "--timesteps", "2", "-o", rough)
    before = document("evaluate", rough, "--samples", "100")["snn"][-1]["top1"]
    options = ["--max-steps", "40", "--batch-size", "32", "--lr", "0.001", "--loss", "labels=0.5,soft=1", "--no-aug"]
    document("finetune", rough, *options, "-o", tuned)
    after = document("evaluate", tuned, "--samples", "100")
    assert after["snn"][-1]["top1"] > before + 15


def test_a_plan_out_of_budget_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit2snn.convert.trials.STEPS", 2)
    recipe = tmp_path / "recipe.json"
    structure = {"mlp": "auto", "norm": "static", "readout": "mean"}
    recipe.write_text(json.dumps({"structure": structure, "spikes": {"kind": "membrane"}, "max_error": 1e-9}))
    result = run("convert", "demo", "--recipe", recipe, "--samples", "24", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "no plan leaves a mean error of at most 1e-09" in result.stderr
    assert not (tmp_path / "out").exists()
    blocks = run("convert", "demo", "--refit", "everything", "-o", tmp_path / "out")
    assert blocks.exit_code == 2
    assert "'none', 'ridge', 'blocks'" in blocks.stderr
    kept = run("convert", "demo", "--refit", "ridge", "-o", tmp_path / "out")
    assert kept.exit_code == 2
    assert "recipe field 'structure.refit' is 'ridge', and every block keeps its own branches" in kept.stderr


@pytest.mark.slow
def test_the_seed_gives_the_routers(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        given = ("--refit", "none", "--samples", "4", "--seed", seed)
        document("convert", "demo", "--recipe", "experts-membrane", *given, "-o", tmp_path / name)
    one, two, three = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "three"))
    router = "blocks.0.attn.terms.experts.router.weight"
    assert all(torch.equal(one[name], value) for name, value in two.items())
    assert not torch.equal(one[router], three[router])
