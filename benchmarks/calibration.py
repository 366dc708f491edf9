"""What a conversion costs, beside the passes of the ANN that it cannot do without, in one run.

    python benchmarks/calibration.py

A model with random weights is converted on random images, in a process of its own. Its passes are counted at the patch
embedding: the images that go through it, in whichever copy of the network and at whichever timestep, over calibration images.
Backward passes and the work of neurons and statistics are not in that count. ``ratio`` is the conversion's seconds over those
of so many passes of the ANN on the same images. The ANN is timed in between, on each batch whenever the conversion asks for it,
so both have the same machine. Memory is what the conversion, or one batch through the ANN, adds to the process at its peak; the
images were there before. Prints a table.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import timm
import torch
from machine import RESULTS, alone, describe, memory, save, seconds
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from vit2snn import to_spiking


class InTurn:
    """Batches; the ANN sees each of them before it is given out, and what that takes is noted."""

    def __init__(self, ann: nn.Module, batches: list[Tensor]) -> None:
        self.ann, self.batches = ann, batches
        self.total, self.by_image = 0.0, list[float]()

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            with torch.no_grad():
                took = seconds(partial(self.ann, batch))
            self.total += took
            self.by_image.append(took / len(batch))
            yield batch


def measure(
    model: str, images: int, batch_size: int, recipe: str, device: str = "cpu"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The machine and the row."""
    ann: Any = timm.create_model(model).eval().to(device)
    batches = list(torch.randn(images, *ann.default_cfg["input_size"], device=device).split(batch_size))
    first = type(ann.patch_embed)
    passed: list[int] = []
    took: list[float] = []

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if isinstance(module, first) and module is not ann.patch_embed:
            passed.append(len(output))

    with torch.no_grad():
        ann(batches[0])
        held_by_ann = memory(lambda: ann(batches[0]), device)
    in_turn = InTurn(ann, batches)
    with register_module_forward_hook(count):
        held = memory(lambda: took.append(seconds(lambda: to_spiking(ann, recipe, in_turn))), device)
    spent, one, passes = took[0] - in_turn.total, statistics.median(in_turn.by_image), sum(passed) / images
    return describe(), {
        "model": model, "images": images, "batch_size": batch_size, "recipe": recipe, "seconds": spent,
        "ann_passes": passes, "ann_seconds": one * images, "ratio": spent / (passes * one * images),
        "memory_mb": held.added, "ann_memory_mb": held_by_ann.added, "memory_ratio": held.added / held_by_ann.added,
        "peak_mb": held.peak, "ann_peak_mb": held_by_ann.peak,
    }  # fmt: skip


@click.command()
@click.option("--model", default="deit_tiny_patch16_224", show_default=True)
@click.option("--images", default=512, show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--recipe", "recipes", multiple=True, default=("faithful",), show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS / "calibration.json")
def main(model: str, images: int, batch_size: int, recipes: tuple[str, ...], threads: int, output: Path) -> None:
    click.echo(f"{'recipe':20} {'seconds':>8} {'passes':>8} {'ANN seconds':>12} {'ratio':>6} {'memory, MB':>11} {'ANN, MB':>8}")
    for recipe in recipes:
        machine, row = alone(measure, model, images, batch_size, recipe, threads=threads)
        save(output, machine, [row], ("model", "images", "batch_size", "recipe"))
        ideal = row["ann_passes"] * row["ann_seconds"]
        times = f"{row['seconds']:8.1f} {row['ann_passes']:8.2f} {ideal:12.1f} {row['ratio']:6.2f}"
        click.echo(f"{recipe:20} {times} {row['memory_mb']:11.0f} {row['ann_memory_mb']:8.0f}")


if __name__ == "__main__":
    main()
