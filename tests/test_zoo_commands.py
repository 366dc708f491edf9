from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from test_official import checkpoint, model_of

from vit2snn.cli import cli


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["zoo", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_list_shows_names_parameters_and_published_accuracy() -> None:
    code, out, _ = run("list", "qkformer_10*")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "qkformer_10_384", "qkformer_10_512", "qkformer_10_768"]
    assert "16.474" in lines[1]
    assert "ImageNet-1k 78.8" in lines[1]
    code, out, _ = run("list", "--json")
    assert len(json.loads(out)) > 40
    code, _, err = run("list", "resnet*")
    assert code == 1
    assert "no model that matches 'resnet*'" in err


def test_show_tells_cost_and_published_figures_with_source_and_caveat() -> None:
    code, out, _ = run("show", "qkformer_10_384")
    assert code == 0
    for part in (
        "arXiv:2403.16552",
        "16.474 M parameters",
        "5.831 GMAC in layers",
        "78.80",
        "15.13",
        "leak",
        "issue 14",
        "spikes:",
    ):
        assert part in out
    document: Any = json.loads(run("show", "sdt_8_384", "--json")[1])
    assert document["statistics"]["parameters"] == 16_816_024
    assert document["published"][0]["top1"] == 72.28
    code, _, err = run("show", "qkformer_10_38")
    assert code == 1
    assert "did you mean qkformer_10_384" in err


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_import_writes_a_timm_model_with_the_authors_weights(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    model, x = model_of("autost")
    stored = {key: value.contiguous() for key, value in checkpoint("autost", model).items()}
    file, config, out = tmp_path / f"weights{suffix}", tmp_path / "config.json", tmp_path / "out"
    if suffix == ".pth":  # as training scripts write them, with their arguments beside
        torch.save({"model": stored, "args": argparse.Namespace(lr=1.0)}, file)
    else:
        save_file(stored, file)
    config.write_text(json.dumps({"num_heads": [4, 8]}))
    code, text, err = run("import", str(file), "--layout", "autost", "--config", str(config), "-o", str(out), "--json")
    assert code == 0, err
    assert json.loads(text)["layout"] == "autost"
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    code, _, err = run("import", str(file), "--layout", "autost", "-o", str(out))
    assert code == 2
    assert "exists already" in err
    code, _, err = run("import", str(file), "--layout", "sdt", "-o", str(tmp_path / "other"))
    assert code == 1
    assert "does not fit the layout 'sdt'" in err
    assert "the layout that fits is autost" in err
    assert not (tmp_path / "other").exists()


def test_import_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing")
    code, _, err = run("import", str(broken), "--layout", "autost", "-o", str(tmp_path / "out"))
    assert code == 1
    assert "cannot be read" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[" * 50_000, "cannot be read"),
        ('{"T": 1, "T": 2}', "it gives 'T' twice"),
        ("[1]", "the document: expected `object`, got `array`".replace("`", "")),
        ('{"num_heads": []}', "num_heads: expected array of length >= 1"),
        ('{"num_heads": "8"}', "num_heads: expected int | array, got str"),
        ('{"step": 1000000000}', "step: expected int <= 1024"),
        ('{"num_classes": null}', "num_classes: expected int, got null"),
        ('{"TIM_alpha": NaN}', "TIM_alpha: expected a finite number, got nan"),
    ],
)
def test_the_authors_arguments_are_within_bounds(text: str, message: str, tmp_path: Path) -> None:
    weights, config = tmp_path / "weights.pth", tmp_path / "config.json"
    torch.save({"head.weight": torch.zeros(2, 2)}, weights)
    config.write_text(text)
    code, _, err = run("import", str(weights), "--layout", "tim", "--config", str(config), "-o", str(tmp_path / "out"))
    assert code == 1 and message in err and "as a JSON object" in err
    code, _, err = run("import", str(weights), "--layout", "tim", "--config", str(tmp_path), "-o", str(tmp_path / "out"))
    assert code == 1 and "it is no regular file" in err
