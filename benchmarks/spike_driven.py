"""Spike-driven conversion of the embedded model: presets by stage by timestep, beside the same networks trained from scratch.

    OMP_NUM_THREADS=1 python benchmarks/spike_driven.py --stage statistics --stage ridge --stage blocks
    OMP_NUM_THREADS=1 python benchmarks/spike_driven.py --data DIR --stage converted --stage scratch --passes 10000

``DIR`` holds Fashion-MNIST as torchvision lays it out (``FashionMNIST/raw``). Calibration: the 256 embedded images; scores: the
1000 embedded scoring images. Training from scratch has the same loss (labels and the ANN's soft labels), batches and schedule
as fine-tuning. Each result is added to ``benchmarks/results/spike_driven_demo.json`` as it comes; ``--table`` prints all.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from vit2snn.convert import RECIPES, SpikingModel, load_model, to_spiking
from vit2snn.convert.model import structure
from vit2snn.data import array_source, batches, open_images, prepared, training_images
from vit2snn.evaluation import evaluate
from vit2snn.finetune import Distillation, Settings, train
from vit2snn.zoo.demo import demo_images

RESULTS = Path(__file__).parent / "results" / "spike_driven_demo.json"
PRESETS = ("qkformer", "experts", "spike-driven", "shift")
STAGES = ("statistics", "ridge", "blocks", "converted", "scratch")
REFIT = {"statistics": "none", "ridge": "ridge", "blocks": "blocks"}
LOSS = {"labels": 0.5, "soft": 1.0}
BATCH, LR = 32, 1e-2


def converted(ann: nn.Module, preset: str, refit: str) -> SpikingModel:
    samples = prepared(ann, array_source(*demo_images("train"), "L"))
    recipe = dataclasses.replace(RECIPES[preset], refit=refit)
    return to_spiking(ann, recipe, torch.stack([sample.image for sample in samples]))


def from_scratch(ann: nn.Module, preset: str) -> SpikingModel:
    """The network of a preset with random weights."""
    snn = structure(ann, RECIPES[preset], (1, 28, 28))
    for module in snn.network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=0.02) if isinstance(module, nn.Linear) else module.reset_parameters()
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name in ("cls_token", "pos_embed"):
        nn.init.trunc_normal_(getattr(snn.network, name), std=0.02)
    return snn


def tune(snn: SpikingModel, ann: nn.Module, passes: int, data: str) -> None:
    source = open_images("torch/fashion_mnist", "train", classes=10, mode="L", root=data)
    loader = training_images(ann, source, BATCH)
    epochs, rest = divmod(passes // BATCH, len(loader))
    settings = Settings(epochs=1, max_steps=epochs * len(loader) + rest, lr=LR, warmup_epochs=min(1.0, passes / 60000 / 10))
    snn.teacher = None
    train(snn, loader, settings, objective=Distillation(LOSS, ann))
    snn.teacher = ann


def measure(preset: str, stage: str, passes: int, data: str) -> dict[str, Any]:
    started = time.time()
    torch.manual_seed(0)
    ann = load_model("demo").requires_grad_(False)
    refit = REFIT.get(stage, RECIPES[preset].refit)
    snn = from_scratch(ann, preset) if stage == "scratch" else converted(ann, preset, refit)
    if stage not in REFIT:
        tune(snn, ann, passes, data)
    scored = prepared(ann, array_source(*demo_images("val"), "L"))
    result = evaluate(snn, batches(scored, 100))
    return {
        "preset": preset,
        "stage": stage,
        "passes": 0 if stage in REFIT else passes,
        "top1": [round(point.top1, 1) for point in result.points],
        "agreement": round(result.points[-1].agreement, 1),
        "spikes_per_neuron": round(result.points[-1].spikes_per_neuron, 2),
        "ann_top1": result.ann_top1,
        "seconds": round(time.time() - started),
    }


def add(row: dict[str, Any]) -> None:
    """Put a result in the place of an older one of the same kind; several processes may do so at once."""
    with RESULTS.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
        key = ("preset", "stage", "passes")
        rows = [old for old in rows if any(old[field] != row[field] for field in key)] + [row]
        rows.sort(key=lambda r: (PRESETS.index(r["preset"]), STAGES.index(r["stage"]), r["passes"]))
        RESULTS.write_text("[\n  " + ",\n  ".join(json.dumps(r) for r in rows) + "\n]\n")


def table() -> str:
    lines = ["| preset | stage | image passes | T = 1 | 2 | 3 | 4 |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in json.loads(RESULTS.read_text()):
        lines.append(f"| {row['preset']} | {row['stage']} | {row['passes']} | {' | '.join(map(str, row['top1']))} |")
    return "\n".join(lines)


@click.command()
@click.option("--data", help="Folder of Fashion-MNIST; needed to train.")
@click.option("--preset", "presets", multiple=True, type=click.Choice(PRESETS), default=PRESETS)
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES))
@click.option("--passes", multiple=True, type=int, default=(10000,), help="Images to train on, repetitions counted.")
@click.option("--table", "only_table", is_flag=True)
def main(data: str, presets: tuple[str, ...], stages: tuple[str, ...], passes: tuple[int, ...], only_table: bool) -> None:
    torch.set_flush_denormal(True)
    for count in () if only_table else passes:
        for preset in presets:
            for stage in stages:
                if preset == "shift" and stage != "statistics":  # training-free, and nothing of it is re-fitted
                    continue
                row = measure(preset, stage, count, data)
                add(row)
                click.echo(json.dumps(row))
    click.echo(table())


if __name__ == "__main__":
    main()
