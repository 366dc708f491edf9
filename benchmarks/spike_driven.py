"""Spike-driven conversion: presets by stage by timestep.

    OMP_NUM_THREADS=1 python benchmarks/spike_driven.py --stage statistics --stage ridge --stage blocks
    OMP_NUM_THREADS=1 python benchmarks/spike_driven.py --data DIR --stage tuned --passes 10000

``DIR`` holds Fashion-MNIST as torchvision lays it out (``FashionMNIST/raw``). Calibration: the 256 embedded images, or
``--images`` of ``DIR``; scores: the 1000 embedded scoring images. The same for DeiT-tiny on CIFAR-10, at 96 by 96 pixels
(``--images`` training images calibrate, 1000 test images are scored)::

    OMP_NUM_THREADS=1 python benchmarks/spike_driven.py --subject deit --weights FILE --ann ANN --data DIR --stage ridge

where ``FILE`` has the weights of ``deit_tiny_patch16_224``, and ``DIR`` the folders ``train`` and ``test`` of class folders.
The ANN is trained on ``train`` first, three times through, and kept in the file ``ANN``.

Fine-tuning is on labels and the ANN's soft labels. Each result is added to
``benchmarks/results/spike_driven_SUBJECT.json`` as it comes; ``--table`` prints all. With glibc, training is faster if
freed memory is kept: ``MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=17179869184``.
"""

from __future__ import annotations

import fcntl
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import safetensors.torch
import torch
from torch import nn

from vit2snn.convert import RECIPES, SpikingModel, Teacher, load_model, to_spiking
from vit2snn.data import (
    Augmentation,
    ImageSource,
    TrainingLoader,
    array_source,
    batches,
    open_images,
    prepared,
    training_images,
)
from vit2snn.finetune import Distillation, Settings, train
from vit2snn.measure import evaluate
from vit2snn.zoo.demo import demo_images

RESULTS = Path(__file__).parent / "results"
PRESETS = (
    "qkformer", "experts", "hybrid", "qkformer-binary", "experts-binary", "qkformer-membrane", "experts-membrane",
    "spike-driven", "shift",
)  # fmt: skip
STAGES = ("statistics", "ridge", "blocks", "network", "tuned")
REFIT = {"statistics": "none", "ridge": "ridge", "blocks": "blocks", "network": "network"}
LOSS = {"labels": 0.5, "soft": 1.0}
BATCH = 32
EMBEDDED, SCORED = 256, 1000
SIDE = 96


@dataclass
class Subject:
    """An ANN, the images to convert, train and score it with, and how it is trained."""

    ann: nn.Module
    calibration: ImageSource
    training: ImageSource | None  # without which there are only the embedded images to calibrate on
    scored: ImageSource
    lr: float  # of fine-tuning
    augmentation: Augmentation

    def loader(self) -> TrainingLoader:
        if self.training is None:
            raise click.UsageError("training needs --data")
        return training_images(self.ann, self.training, BATCH, augmentation=self.augmentation)


def demo(data: str | None, weights: str | None, kept: str | None) -> Subject:
    training = open_images("torch/fashion_mnist", "train", classes=10, mode="L", root=data) if data else None
    calibration, scored = (array_source(*demo_images(split), "L") for split in ("train", "val"))
    # About what the ANN was trained with: mirrored, and shifted by a pixel.
    augmentation = Augmentation(scale=(0.9, 1.0))
    return Subject(load_model("demo").requires_grad_(False), calibration, training, scored, 5e-4, augmentation)


def deit(data: str | None, weights: str | None, kept: str | None) -> Subject:
    if data is None or weights is None or kept is None:
        raise click.UsageError("DeiT-tiny needs --data, --weights and --ann")
    training, scored = (open_images(Path(data) / split, split, classes=10) for split in ("train", "test"))
    ann: Any = load_model("deit_tiny_patch16_224", weights)
    ann.set_input_size(img_size=SIDE)
    ann.pretrained_cfg = ann.pretrained_cfg | {"input_size": (3, SIDE, SIDE), "crop_pct": 1.0, "num_classes": 10}
    ann.reset_classifier(10)
    augmentation = Augmentation(scale=(0.7, 1.0))
    if Path(kept).is_file():
        safetensors.torch.load_model(ann, kept)
    else:
        torch.manual_seed(0)
        train(
            ann,
            training_images(ann, training, BATCH, augmentation=augmentation),
            Settings(epochs=3, lr=2e-4, warmup_epochs=0.2),
        )
        safetensors.torch.save_model(ann, kept)
    return Subject(ann.requires_grad_(False), training, training, scored, 2e-4, augmentation)


SUBJECTS = {"demo": demo, "deit": deit}


def converted(subject: Subject, preset: str, refit: str, images: int) -> SpikingModel:
    source = subject.training if images > EMBEDDED else subject.calibration
    if source is None:
        raise click.UsageError(f"more than the {EMBEDDED} embedded images need --data")
    samples = prepared(subject.ann, source, count=images)
    recipe = RECIPES[preset].changed(refit=refit)
    return to_spiking(subject.ann, recipe, torch.stack([sample.image for sample in samples]))


def tune(snn: SpikingModel, subject: Subject, passes: int, lr: float) -> None:
    loader = subject.loader()
    epochs, rest = divmod(passes // BATCH, len(loader))
    updates = epochs * len(loader) + rest
    warmup = min(1.0, updates / len(loader) / 10)
    settings = Settings(epochs=1, max_steps=updates, lr=lr, warmup_epochs=warmup)
    train(snn, loader, settings, objective=Distillation(LOSS, subject.ann))
    snn.teacher = Teacher(subject.ann)


def measure(subject: Subject, preset: str, stage: str, images: int, passes: int) -> dict[str, Any]:
    started = time.time()
    torch.manual_seed(0)
    snn = converted(subject, preset, REFIT.get(stage, RECIPES[preset].structure.refit), images)
    fitted = time.time()
    if stage == "tuned":
        tune(snn, subject, passes, subject.lr)
    result = evaluate(snn, batches(prepared(subject.ann, subject.scored, count=SCORED), 100))
    return {
        "preset": preset,
        "stage": stage,
        "images": images,
        "passes": passes if stage == "tuned" else 0,
        "substitute": result.substitute_top1,
        "top1": [round(point.top1, 1) for point in result.points],
        "agreement": round(result.points[-1].agreement, 1),
        "spikes_per_neuron": round(result.points[-1].spikes_per_neuron, 2),
        "energy": round(result.points[-1].energy, 2),
        "ann_top1": result.ann_top1,
        "fit_seconds": round(fitted - started),
        "seconds": round(time.time() - started),
    }


def add(path: Path, row: dict[str, Any]) -> None:
    """Put a result in the place of an older one of the same kind; several processes may do so at once."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        rows = json.loads(file.read() or "[]")
        key = ("preset", "stage", "passes", "images")
        rows = [old for old in rows if any(old[field] != row[field] for field in key)] + [row]
        rows.sort(key=lambda r: (PRESETS.index(r["preset"]), STAGES.index(r["stage"]), r["images"], r["passes"]))
        file.truncate(0)
        file.write("[\n  " + ",\n  ".join(json.dumps(r) for r in rows) + "\n]\n")


def table(path: Path) -> str:
    lines = [
        "| preset | stage | images | image passes | T = 1 | 2 | 3 | 4 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in json.loads(path.read_text()):
        figures = " | ".join(map(str, row["top1"]))
        lines.append(f"| {row['preset']} | {row['stage']} | {row['images']} | {row['passes']} | {figures} |")
    return "\n".join(lines)


@click.command()
@click.option("--subject", "name", type=click.Choice(list(SUBJECTS)), default="demo", show_default=True)
@click.option("--data", help="Folder of images; the embedded model needs it to train only.")
@click.option("--weights", help="Of DeiT-tiny on ImageNet.")
@click.option("--ann", "kept", help="DeiT-tiny on CIFAR-10: written if there is no such file.")
@click.option("--preset", "presets", multiple=True, type=click.Choice(PRESETS), default=PRESETS)
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES))
@click.option("--images", type=int, default=EMBEDDED, show_default=True, help="To calibrate and fit on.")
@click.option("--passes", multiple=True, type=int, default=(10000,), help="Images to train on, repetitions counted.")
@click.option("--table", "only_table", is_flag=True)
def main(
    name: str, data: str | None, weights: str | None, kept: str | None, presets: tuple[str, ...], stages: tuple[str, ...],
    images: int, passes: tuple[int, ...], only_table: bool,
) -> None:  # fmt: skip
    torch.set_flush_denormal(True)
    path = RESULTS / f"spike_driven_{name}.json"
    subject = None if only_table else SUBJECTS[name](data, weights, kept)
    for count in passes if subject else ():
        for preset in presets:
            for stage in stages:
                if preset == "shift" and stage != "statistics":  # training-free, and nothing of it is re-fitted
                    continue
                row = measure(subject, preset, stage, images, count)
                add(path, row)
                click.echo(json.dumps(row))
    click.echo(table(path))


if __name__ == "__main__":
    main()
