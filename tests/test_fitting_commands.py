"""Fitting substitutes from the command line: options, interruption, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from vit2snn import load
from vit2snn.cli import cli
from vit2snn.convert import fitting
from vit2snn.spiking.substitutes import SubstituteAttention


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fit_branches", "fitting"):
        monkeypatch.setattr(f"vit2snn.convert.{module}.STEPS", 2)


def convert(out: Path, *options: Any) -> Result:
    arguments = ["convert", "demo", "--recipe", "qkformer", "--samples", "16", "--passes", "2", "-o", out, *options]
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.mark.slow
def test_a_fit_leaves_its_metrics_and_no_checkpoint(tmp_path: Path) -> None:
    done = convert(tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == 16
    assert "substitutes fitted on 16 images keep less than on some hundreds: --samples 512" in done.stderr
    snn = load(tmp_path / "out")
    assert snn.recipe.structure.passes == 2
    assert any(isinstance(module, SubstituteAttention) for module in snn.network.modules())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    rows = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3 and {"logits", "features", "streams"} <= set(rows[0].split(","))
    evaluated = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "out"), "--samples", "8"])
    assert evaluated.exit_code == 0 and "more of them (--samples)" in evaluated.output
    inspected = CliRunner().invoke(cli, ["inspect", str(tmp_path / "out")])
    assert inspected.exit_code == 0 and "qk-channel" in inspected.output


@pytest.mark.slow
def test_an_interrupted_fit_is_resumed_on_request_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "out", fitting.fit_network

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit_network", killed)
    assert convert(out).exit_code != 0
    monkeypatch.setattr(fitting, "fit_network", real)
    assert not out.exists() and (tmp_path / "out.training" / "branches" / "checkpoint").exists()
    again = convert(out)
    assert again.exit_code != 0 and "it holds an unfinished training" in again.output and "--resume" in again.output
    other = convert(out, "--resume", "--seed", "1")
    assert other.exit_code != 0 and "was begun with" in other.output
    assert convert(out, "--resume").exit_code == 0
    assert not (tmp_path / "out.training").exists()


@pytest.mark.slow
def test_a_fit_interrupted_with_its_spikes_to_come_does_not_fit_its_structure_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    membrane = ["--recipe", "spike-driven", "--passes", "1", "--timesteps", "2"]
    out, folder = tmp_path / "out", tmp_path / "out.training"
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit_spikes", killed)
        assert convert(out, *membrane).exit_code != 0
    assert {path.name for path in folder.iterdir()} >= {"branches", "checkpoint", "spikes"} and not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr("vit2snn.convert.fit_branches._train", killed)
        other = convert(out, *membrane, "--resume", "--seed", "1")
        assert other.exit_code != 0 and "was begun with" in other.output
        resumed = convert(out, *membrane, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert not folder.exists() and load(out).recipe.spike_driven


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "there is no unfinished training"),
        (["--samples", "1"], "there is 1 calibration image"),
        (["--precision", "fp16"], "the precision 'fp16' needs a GPU"),
        (["--passes", "0"], "0 is not in the range"),
        (["--refit", "all"], "'all' is not one of"),
        (["--refit", "blocks"], "--passes are those of --refit network or spikes, got --refit blocks"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_left(options: list[str], message: str, tmp_path: Path) -> None:
    refused = convert(tmp_path / "out", *options)
    assert refused.exit_code in (1, 2) and message in refused.output, refused.output
    assert not list(tmp_path.iterdir())


def test_other_recipes_have_nothing_to_resume(tmp_path: Path) -> None:
    arguments = ["convert", "demo", "--samples", "4", "--resume", "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code == 1 and "there is no unfinished training" in refused.output
