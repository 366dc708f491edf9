"""Small alphabets by schedule: agreement with the ANN, latency, spikes and energy of networks that were calibrated for their T.

    python benchmarks/schedules.py                                                  # the embedded model
    python benchmarks/schedules.py --model deit_tiny_patch16_224 --weights FILE --data IMAGES --class-map CLASSES --samples 500

``IMAGES`` has ``train`` and ``val`` folders of class folders, as ImageNet has. Calibration images come from ``train`` only.
Each row is a conversion of its own, of which the last timestep is scored; energy is metered on the first ``--metered`` images.
Each result is added to ``benchmarks/results/schedules_MODEL.json`` as it comes; ``--table`` prints what is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from faithful import RESULTS, sources, takes_subject
from torch import Tensor

from vit2snn.convert import RECIPES, SpikingModel, load_model, to_spiking
from vit2snn.data import batches, prepared
from vit2snn.measure import evaluate
from vit2snn.tracing.wavefront import wave

ROWS: dict[str, tuple[str, int, int]] = {
    f"{name} {timesteps}": (name, timesteps, 0)
    for name, each in {
        "binary-rate": (4, 8, 16),
        "binary": (4, 8, 16),
        "ternary-stepwise": (4, 8),
        "ternary": (4, 8),
        "ternary-synchronous": (4,),
        "faithful": (1,),
    }.items()
    for timesteps in each
}
ROWS |= {
    f"{name} {timesteps} refit": (name, timesteps, passes)
    for name, timesteps, passes in (
        ("binary", 4, 3),
        ("ternary-stepwise", 4, 3),
        ("ternary-synchronous", 4, 6),
    )
}
"""Recipe, T, and passes of ``--refit spikes``."""


@torch.inference_mode()
def last_readout(snn: SpikingModel, x: Tensor) -> Tensor:
    """The logits after the last timestep, ``[B, classes]``, without those of shorter runs."""
    if snn.recipe.lag:
        return wave(snn.respond, x.expand(snn.timesteps, *x.shape))[-1]
    return snn(x)[-1]


def scored(snn: SpikingModel, loader: Iterator[Any]) -> dict[str, float]:
    """Top-1, agreement with the ANN, both in %, and the relative error of the logits."""
    sums = torch.zeros(5, dtype=torch.float64)
    for x, y in loader:
        readout, ann = last_readout(snn, x), snn.ann(x)
        found, wanted = readout.argmax(-1), ann.argmax(-1)
        sums += torch.stack(
            [
                (found == y).sum(),
                (found == wanted).sum(),
                (readout - ann).square().sum(),
                ann.square().sum(),
                y.numel() + 0 * y.sum(),
            ]
        ).double()
    right, agreed, lost, size, images = sums.tolist()
    return {"top1": 100 * right / images, "agreement": 100 * agreed / images, "relative_error": (lost / size) ** 0.5}


def table(path: Path) -> str:
    """The rows as Markdown."""
    lines = ["| recipe | T | refit | latency | top-1 | agreement | error | spikes | energy |", "| --- |" + " --- |" * 8]
    for row in json.loads(path.read_text()):
        lines.append(
            f"| `{row['recipe']}` | {row['timesteps']} | {row.get('refit_passes') or ''} | {row['latency']} | "
            f"{row['top1']:.1f} | {row['agreement']:.1f} | "
            f"{row['relative_error']:.2g} | {row['spikes_per_neuron']:.2f} | {100 * row['energy']:.0f} % |"
        )
    return "\n".join(lines)


def _key(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["recipe"], row["timesteps"], row.get("refit_passes", 0)


@click.command()
@takes_subject
@click.option(
    "--row", "rows", multiple=True, type=click.Choice(list(ROWS)), default=[name for name, row in ROWS.items() if not row[2]]
)
@click.option("--calibration", default=128, show_default=True)
@click.option("--samples", default=1000, show_default=True, help="Images that are scored.")
@click.option("--metered", default=16, show_default=True, help="Images that energy is counted on.")
@click.option("--batch-size", default=16, show_default=True)
@click.option("--table", "only_table", is_flag=True)
def main(
    model: str, weights: str | None, data: str | None, class_map: str | None, rows: tuple[str, ...], calibration: int,
    samples: int, metered: int, batch_size: int, only_table: bool,
) -> None:  # fmt: skip
    torch.set_flush_denormal(True)
    path = RESULTS / f"schedules_{model.split('.')[0]}.json"
    for name in () if only_table else rows:
        recipe, timesteps, passes = ROWS[name]
        started = time.time()
        ann = load_model(model, weights)
        (calibrating, count), (scoring, total) = sources(ann, data, class_map, calibration, samples)
        images = torch.stack([sample.image for sample in prepared(ann, calibrating, count=count)])
        snn = to_spiking(ann, RECIPES[recipe].changed(timesteps=timesteps, refit_passes=passes), list(images.split(32)))
        seconds = round(time.time() - started)
        unseen = prepared(ann, scoring, count=total, exclude=snn.calibrated_on)
        found = scored(snn, batches(unseen, batch_size))
        few = prepared(ann, scoring, count=metered, exclude=snn.calibrated_on)
        (point,) = evaluate(snn, batches(few, batch_size), [timesteps]).points
        spent = {"latency": point.latency, "spikes_per_neuron": point.spikes_per_neuron, "energy": point.energy}
        chosen = {"recipe": recipe, "timesteps": timesteps, "refit_passes": passes, "calibration": calibration}
        row = {**chosen, "images": total, "seconds": seconds, **found, **spent}
        row = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
        kept = json.loads(path.read_text()) if path.exists() else []
        kept = [old for old in kept if _key(old) != _key(row)] + [row]
        kept.sort(key=lambda old: list(ROWS.values()).index(_key(old)))
        path.write_text("[\n  " + ",\n  ".join(json.dumps(old) for old in kept) + "\n]\n")
        click.echo(json.dumps(row))
    click.echo(table(path))


if __name__ == "__main__":
    main()
