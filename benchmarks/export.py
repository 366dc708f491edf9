"""Exported networks beside PyTorch's: logits at every timestep of every recipe, run by ONNX Runtime.

    python benchmarks/export.py                      # the embedded model
    python benchmarks/export.py --model vit_tiny_patch16_224 --recipe faithful --recipe qkformer
    python benchmarks/export.py --folder deit-snn --data imagenet --class-map FILE  # a converted model on validation images

Models other than ``demo`` get random weights and images: what is looked at is rounding. Prints the largest and the median
difference of logits, as shares of their standard deviation, and the share of images of which the class differs, over all
timesteps. Beside them (``float64``) are those of PyTorch's float32 from PyTorch's float64: what rounding does to this network.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor

from vit2snn import load
from vit2snn.convert import RECIPES, load_model, to_spiking
from vit2snn.data import array_source, open_images, prepared
from vit2snn.export import export
from vit2snn.zoo.demo import demo_images

CALIBRATION, IMAGES = 64, 16


def images(model: Any, name: str, split: str, count: int) -> Tensor:
    """``[B, C, H, W]``."""
    if name == "demo":
        return torch.stack([sample.image for sample in prepared(model, array_source(*demo_images(split)), count=count)])
    return torch.randn(count, *resolve_model_data_config(model)["input_size"])


def ran(path: Path, document: dict[str, Any], x: Tensor, timesteps: int) -> np.ndarray:
    """The logits ``[T, B, classes]`` of an exported network."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if document["graph"] == "run":
        return session.run(None, {"images": x.numpy()})[0]
    states = {s["name"]: np.zeros((len(x), *s["shape"][1:]), np.float32) for s in document["inputs"][2:]}
    found = []
    for t in range(timesteps):
        logits, *after = session.run(None, {"images": x.numpy(), "timestep": np.array(t), **states})
        states = dict(zip(states, after, strict=True))
        found.append(logits)
    return np.stack(found)


def compared(model: Any, name: str, recipe: str, timesteps: int) -> dict[str, Any]:
    """One recipe."""
    chosen = RECIPES[recipe].changed(timesteps=timesteps)
    chosen = chosen.changed(refit="ridge") if chosen.structure.replaces else chosen  # accuracy is not what is looked at
    snn = to_spiking(model, chosen, images(model, name, "train", CALIBRATION)).eval()
    return {"recipe": recipe} | exported(snn, images(model, name, "val", IMAGES), timesteps)


def exported(snn: Any, x: Tensor, timesteps: int) -> dict[str, Any]:
    """A converted network, on images."""
    with torch.no_grad():
        expected = snn(x, timesteps, chunk=1).numpy()
    row: dict[str, Any] = {"graph": "run" if snn.synchronous else "step"}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        document = export(snn, Path(folder) / "out", step=not snn.synchronous)
        row["export_seconds"] = round(time.perf_counter() - started, 1)
        file = Path(folder) / "out" / "model.onnx"
        row["megabytes"] = round(sum(f.stat().st_size for f in file.parent.glob("model.onnx*")) / 1e6, 1)
        found = ran(file, document, x, timesteps)
    with torch.no_grad():
        exact = copy.deepcopy(snn).double()(x.double(), timesteps, chunk=1).numpy()
    return row | difference(found, expected) | {"float64": difference(exact, expected)}


def difference(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Of logits ``[T, B, classes]``."""
    apart = np.abs(found - expected) / expected.std()
    differ = found.argmax(-1) != expected.argmax(-1)
    return {"largest": float(apart.max()), "median": float(np.median(apart)), "classes_differ": float(differ.mean())}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--recipe", action="append", choices=list(RECIPES))
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--folder", help="Of a converted model, instead of recipes.")
    parser.add_argument("--data")
    parser.add_argument("--class-map")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.folder:
        snn = load(arguments.folder)
        source = open_images(arguments.data, "val", classes=snn.network.num_classes, class_map=arguments.class_map)
        x = torch.stack([sample.image for sample in prepared(snn.network, source, count=IMAGES)])
        print(json.dumps(exported(snn, x, arguments.timesteps)))
        return
    model = load_model("demo") if arguments.model == "demo" else timm.create_model(arguments.model).eval()
    rows = []
    for recipe in arguments.recipe or [name for name in RECIPES if not RECIPES[name].lag]:
        rows.append(compared(model, arguments.model, recipe, arguments.timesteps))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"model": arguments.model, "timesteps": arguments.timesteps, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
