"""Towers of CLIP whose classes are text embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from test_checkpoints import SMALL
from torch import Tensor, nn
from torch.nn import functional as F

from vit2snn import load, to_spiking
from vit2snn.cli import cli
from vit2snn.convert import RECIPES, read_embeddings, zero_shot
from vit2snn.errors import CheckpointError, ModelError

TOWERS = {"vit_base_patch16_clip_224": 20, "vit_base_patch16_siglip_224": 0}
"""With a projection to so many numbers, or with none."""


def tower(name: str) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=TOWERS[name], **SMALL).eval()  # type: ignore[arg-type]


def texts(model: Any, *shape: int) -> Tensor:
    return torch.randn(*shape, model.num_classes or model.num_features)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_logits_rank_classes_as_cosines_do(name: str) -> None:
    model, images = tower(name), torch.randn(6, 3, 32, 32)
    embeddings, features = texts(model, 5, 3), model(images)
    expected = F.normalize(F.normalize(embeddings, dim=-1).mean(1), dim=-1)
    logits = zero_shot(model, embeddings.half() if name.startswith("vit_base_patch16_clip") else embeddings)(images)
    torch.testing.assert_close(logits, features @ expected.T, rtol=1e-2, atol=1e-2)
    assert model.num_classes == 5


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["faithful", "qkformer"])
@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_it_is_converted_saved_and_loaded(name: str, recipe: str, tmp_path: Path) -> None:
    model, images = tower(name), torch.randn(32, 3, 32, 32)
    zero_shot(model, texts(model, 5))
    chosen = RECIPES[recipe].changed(timesteps=2)
    snn = to_spiking(model, chosen.changed(refit="none") if recipe == "qkformer" else chosen, images)
    snn.save(tmp_path / "snn")
    assert torch.equal(load(tmp_path / "snn")(images), snn(images)) and snn(images).shape == (2, 32, 5)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["npy", "safetensors", "pt"])
def test_the_command_line_scores_classes(suffix: str, tmp_path: Path) -> None:
    model = tower("vit_base_patch16_clip_224")
    embeddings, path = texts(model, 2), tmp_path / f"texts.{suffix}"
    if suffix == "npy":
        np.save(path, embeddings.numpy())
    elif suffix == "pt":
        torch.save({"texts": embeddings}, path)
    else:
        save_file({"texts": embeddings}, path)
    torch.testing.assert_close(read_embeddings(path), embeddings)
    (tmp_path / "model").mkdir()
    cfg = model.pretrained_cfg | {"input_size": [3, 32, 32], "num_classes": 20}
    config = {"architecture": "vit_base_patch16_clip_224", "model_args": SMALL, "num_classes": 20, "pretrained_cfg": cfg}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model" / "model.safetensors")
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)):
        kind = tmp_path / "data" / f"class{index % 2}"
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(kind / f"{index}.png")
    given = ["--data", tmp_path / "data", "--samples", "32"]
    asked = ["convert", f"local-dir:{tmp_path / 'model'}", "--classifier", path, "-o", tmp_path / "snn", "--timesteps", "2"]
    result = CliRunner().invoke(cli, [str(part) for part in (*asked, *given)])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(cli, [str(part) for part in ("evaluate", tmp_path / "snn", *given, "--json")])
    assert result.exit_code == 0, result.output
    zero_shot(model, embeddings)
    torch.testing.assert_close(dict(load(tmp_path / "snn").network.named_parameters())["head.weight"], model.head.weight)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 19), "20 numbers"), ((20, 5), "20 numbers"), ((20,), r"\[classes, 20\]"), ((0, 20), r"\[classes, 20\]")],
)
def test_embeddings_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    model = tower("vit_base_patch16_clip_224")
    head = model.head
    with pytest.raises(ModelError, match=message) as caught:
        zero_shot(model, torch.randn(shape))
    assert model.head is head and ("transpose" in str(caught.value.hint)) == (shape == (20, 5))


def test_no_direction_and_no_head_are_refused() -> None:
    with pytest.raises(ModelError, match="no direction"):
        zero_shot(tower("vit_base_patch16_clip_224"), torch.zeros(3, 20))
    with pytest.raises(ModelError, match="the head of Sequential is NoneType"):
        zero_shot(nn.Sequential(), torch.zeros(3, 20))


def test_files_that_hold_no_embeddings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    save_file({"texts": torch.zeros(2, 3), "names": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="2 tensors"):
        read_embeddings(path)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for content in (tmp_path / "objects.npy").read_bytes(), b"\x93NUMPY\x01", b"text":
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_embeddings(path)
