"""What takes many passes over images: substitutes that are fitted far longer than a CPU would, in slices of some minutes.

    python benchmarks/gpu_accuracy.py --subject imagenet --data DIR --weights FILE --passes 100 --state FOLDER
    python benchmarks/gpu_accuracy.py --subject cifar --data DIR --weights FILE --passes 0 --recipe experts --state FOLDER
    python benchmarks/gpu_accuracy.py --device cpu --quick --state FOLDER     # the embedded model, to see that it runs

``FILE`` has the weights of ``deit_tiny_patch16_224``.

* ``imagenet``: ``DIR`` has the folders ``train`` (all of whose images are fitted to, without labels) and ``val`` (which is
  scored), and ``class_map.txt``;
* ``cifar``: ``DIR`` has ``train`` and ``test``, of class folders. DeiT-tiny is trained on it first, at 224 pixels, and kept in
  ``FOLDER``; 1000 of its training images are fitted to, and 1000 test images are scored.

``--passes`` of the whole network go over the images to fit to (a hundred over a thousand are 10^5 image passes); with 0,
branches are fitted one by one, and that is all. When the minutes are over, what is unfinished is in ``FOLDER``, packed (see
`slices`), and the same command goes on from there. Finished recipes are rows of ``gpu_accuracy.json`` in that folder, and are
not made again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import safetensors.torch
import slices
import spike_driven
import torch
from machine import describe, save
from parts import Budget
from torch import Tensor, nn

from vit2snn.convert import RECIPES, Fitting, Progress, load_model, to_spiking
from vit2snn.data import Augmentation, ImageSource, batches, open_images, prepared, training_images
from vit2snn.finetune import Settings, train
from vit2snn.measure import evaluate
from vit2snn.spiking import prepare_process

RESULTS = "gpu_accuracy.json"
FITTED, SCORED = 1000, 1000  # images
EPOCHS, BATCH = 5, 64  # of the ANN on CIFAR-10
PACKED_EVERY, TOLD_EVERY = 60.0, 15.0  # seconds
KEYS = ("subject", "recipe", "passes", "precision")


class TimeIsUp(Exception):
    """The slice is over."""


@dataclass(frozen=True)
class Job:
    """What one command is to do.

    Attributes:
        data: images.
        weights: of DeiT-tiny.
        state: folder of what goes from slice to slice.
        device: of all of it.
        workers: threads or processes that read images.
    """

    data: str | None
    weights: str | None
    state: Path
    device: str
    workers: int


@dataclass(frozen=True)
class Subject:
    """An ANN on the CPU, and the images to fit to and to score."""

    ann: nn.Module
    fitted: ImageSource
    scored: ImageSource


def demo(job: Job) -> Subject:
    found = spike_driven.demo(None, None, None)
    return Subject(found.ann, found.calibration, found.scored)


def imagenet(job: Job) -> Subject:
    data, weights = given(job)
    train_, val = (
        open_images(data / split, split, classes=1000, class_map=data / "class_map.txt") for split in ("train", "val")
    )
    return Subject(load_model("deit_tiny_patch16_224", weights), train_, val)


def cifar(job: Job) -> Subject:
    data, weights = given(job)
    training, scored = (open_images(data / split, split, classes=10) for split in ("train", "test"))
    ann: Any = load_model("deit_tiny_patch16_224", weights)
    ann.pretrained_cfg = ann.pretrained_cfg | {"crop_pct": 1.0, "num_classes": 10}
    ann.reset_classifier(10)
    kept = job.state / "ann.safetensors"
    if not kept.is_file():
        torch.manual_seed(0)
        loader = training_images(
            ann, training, BATCH, workers=job.workers, augmentation=Augmentation(scale=(0.7, 1.0))
        )  # fmt: skip
        settings = Settings(epochs=EPOCHS, lr=2e-4, warmup_epochs=0.2, precision="bf16")
        train(ann.to(job.device), loader, settings)
        half = {name: value.half().cpu().contiguous() for name, value in ann.state_dict().items()}
        safetensors.torch.save_file(half, kept)
    safetensors.torch.load_model(ann.cpu(), kept)  # also what was just trained: later slices have the same
    return Subject(ann.eval(), training, scored)


def given(job: Job) -> tuple[Path, str]:
    if job.data is None or job.weights is None:
        raise click.UsageError("DeiT-tiny needs --data and --weights")
    return Path(job.data), job.weights


SUBJECTS: dict[str, Callable[[Job], Subject]] = {"demo": demo, "imagenet": imagenet, "cifar": cifar}


@dataclass
class Keeper:
    """Listens to a fit: tells how far it is, packs its checkpoints, and ends it when the time is up."""

    budget: Budget
    work: Path
    state: Path
    name: str
    packed: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.told > TOLD_EVERY:
            click.echo(f"{self.name}: {progress.stage}, {100 * progress.done:.1f} %, {self.budget.left:.0f} s are left")
            self.told = now
        if now - self.packed > PACKED_EVERY or not self.budget.left:
            slices.pack(self.work, self.state, self.name)
            self.packed = now
        if not self.budget.left:
            raise TimeIsUp


def fitted(subject: Subject, job: Job, recipe: str, passes: int, precision: Any, budget: Budget) -> dict[str, Any]:
    """The figures of a recipe.

    Raises:
        TimeIsUp: it is not ready; its checkpoints are packed.
    """
    wanted = RECIPES[recipe].changed(**({"refit": "network", "passes": passes} if passes else {"refit": "blocks"}))
    with TemporaryDirectory() as folder:
        work = Path(folder)
        resume = slices.unpack(job.state, recipe, work)
        keeper = Keeper(budget, work, job.state, recipe)
        fitting = Fitting(precision, work, resume, keeper)
        snn = to_spiking(subject.ann.to(job.device), wanted, images_of(subject, job), fitting=fitting)
    scored = prepared(subject.ann, subject.scored, count=SCORED, exclude=snn.calibrated_on, workers=job.workers)
    result = evaluate(snn, batches(scored, 100))
    return {
        "substitute": result.substitute_top1, "top1": [point.top1 for point in result.points],
        "agreement": result.points[-1].agreement, "energy": result.points[-1].energy, "ann_top1": result.ann_top1,
        "images": len(snn.calibrated_on), "scored": result.images,
    }  # fmt: skip


def images_of(subject: Subject, job: Job) -> Tensor:
    """Those to fit to, ``[N, C, H, W]``."""
    samples = prepared(subject.ann, subject.fitted, count=FITTED, workers=job.workers)
    return torch.stack([sample.image for sample in samples]).to(job.device)


@click.command()
@click.option("--subject", "name", type=click.Choice(list(SUBJECTS)), default="demo", show_default=True)
@click.option("--recipe", "recipes", multiple=True, default=("qkformer",), show_default=True, type=click.Choice(list(RECIPES)))
@click.option("--passes", default=100, show_default=True, help="Over the images to fit to; 0 fits branches only.")
@click.option("--precision", default="no", show_default=True, type=click.Choice(["no", "bf16"]), help="Of the fit.")
@click.option("--data", help="Folder of images.")
@click.option("--weights", help="Of DeiT-tiny on ImageNet.")
@click.option("--minutes", default=8.0, show_default=True, help="Until the fit stops; conversion and scores come on top.")
@click.option("--state", type=click.Path(path_type=Path), required=True, help="Folder of results and unfinished fits.")
@click.option("--device", default="cuda", show_default=True, type=click.Choice(["cuda", "cpu"]))
@click.option("--workers", default=8, show_default=True, help="That read images.")
@click.option("--quick", is_flag=True, help="The embedded model and two passes.")
def main(
    name: str, recipes: tuple[str, ...], passes: int, precision: str, data: str | None, weights: str | None, minutes: float,
    state: Path, device: str, workers: int, quick: bool,
) -> None:  # fmt: skip
    """Fit, convert and score; the last line has the figures, or says how far it came."""
    prepare_process()
    state.mkdir(parents=True, exist_ok=True)
    name, passes = ("demo", 2) if quick else (name, passes)
    job, budget, output = Job(data, weights, state, device, workers), Budget(60 * minutes), state / RESULTS
    subject = SUBJECTS[name](job)
    made: list[dict[str, Any]] = []
    for recipe in recipes:
        keys = {"subject": name, "recipe": recipe, "passes": passes, "precision": precision}
        row = earlier(output, keys)
        if row is None:
            try:
                row = keys | fitted(subject, job, recipe, passes, precision, budget)
            except TimeIsUp:
                click.echo(f"{recipe} is unfinished; the same command goes on with it, given {str(state)!r}")
                sys.exit(0)
            save(output, describe(), [row], KEYS)
            slices.drop(state, recipe)
        made.append(row)
    click.echo(json.dumps(made))


def earlier(output: Path, keys: dict[str, Any]) -> dict[str, Any] | None:
    """The row that was made before."""
    rows = [row for run in json.loads(output.read_text()) for row in run["rows"]] if output.exists() else []
    return next((row for row in rows if all(row[key] == value for key, value in keys.items())), None)


if __name__ == "__main__":
    main()
