"""DeiT-tiny on ImageNet images, on a few of them; the full figures come from the commands in the README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from skips import SHARED

from vit2snn.cli import cli

pytestmark = pytest.mark.shared
DATA = SHARED / "data"


@pytest.mark.slow
def test_deit_tiny_from_float16_weights_agrees_with_its_ann(tmp_path: Path) -> None:
    images = ["--data", str(DATA / "imagenet-mini"), "--class-map", str(DATA / "imagenet-mini" / "class_map.txt")]
    checkpoint = str(DATA / "weights" / "deit_tiny_patch16_224.fp16.safetensors")
    out = str(tmp_path / "deit")
    convert = ["convert", "deit_tiny_patch16_224", "--checkpoint", checkpoint, "-o", out, "--samples", "16", "--timesteps", "3"]
    result = CliRunner().invoke(cli, convert + images)
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(cli, ["evaluate", out, "--samples", "32", "--json", *images])
    document = json.loads(result.stdout)
    assert document["images"] == 32
    assert document["ann"]["top1"] >= 60
    agreement = [point["agreement"] for point in document["snn"]]
    assert agreement[0] >= 75
    assert agreement[2] >= 93
    errors = [point["relative_error"] for point in document["snn"]]
    assert errors[0] > errors[1] > errors[2] < 0.15


def test_validation_folders_without_the_class_map_are_refused() -> None:
    from vit2snn.data import open_images
    from vit2snn.errors import DataError

    with pytest.raises(DataError, match="399 class folders, the model tells 1000 classes apart"):
        open_images(DATA / "imagenet-mini" / "val", "validation", classes=1000)
