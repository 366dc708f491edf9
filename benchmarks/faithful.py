"""Training-free conversion, timestep by timestep: our recipes beside the threshold rules of other converters, in one run.

    python benchmarks/faithful.py                                                    # the embedded model, all recipes
    python benchmarks/faithful.py --model deit_tiny_patch16_224 --weights FILE --data IMAGES --class-map CLASSES --samples 500
    python benchmarks/faithful.py --model vit_base_patch16_224.augreg2_in21k_ft_in1k --data IMAGENET --samples 50000
    torchrun --nproc-per-node 4 benchmarks/faithful.py --model NAME --data IMAGENET  # the processes share the images

``IMAGES`` has ``train`` and ``val`` folders of class folders, as ImageNet has. Calibration images come from ``train`` only.
Each result is added to ``benchmarks/results/faithful_MODEL.json`` as it comes; ``--table`` prints what is there.

``faithful`` lets the neurons that see the image send two spikes in a timestep, counted as two; ``one spike`` does not.
``priced`` is ``faithful`` with a price that makes it send about as many spikes as ``dcgs``, or fewer. ``32 levels`` and
``bursts`` (two spikes in a step where the second is worth its price) are what a single timestep can have. ``image analog``
leaves the patch embedding to multiply, as most published networks do, and is charged for it.

The rules of others are put in our own terms: same sites, same simulation, thresholds of each tensor from the same calibration
images, no prior, no bias. ``rate`` is ternary rate coding with the 99.9 % quantile as threshold. ``dcgs`` is the differential
coding of DCGS (ICML 2025): 8 powers of two below 4 times the 99.9 % quantile, in units that fall as 1/t. ``ecmt`` is the
multi-threshold neuron of ECMT (ACM MM 2024): rate coding with 8 powers of two upwards from the 99 % quantile. Quantiles are
those of magnitudes, not of signed values as in the published code, where a site that is never positive gets no threshold.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from vit2snn.commands.processes import is_main, launched, own_images
from vit2snn.convert import RECIPES, load_model, to_spiking
from vit2snn.data import array_source, batches, open_images, prepared
from vit2snn.measure import Point, evaluate
from vit2snn.zoo.demo import demo_images

RESULTS = Path(__file__).parent / "results"
PLAIN: dict[str, Any] = {"thresholds": "static", "observer": "percentile", "prior": "none", "bias": False, "input_spikes": 1}
FAITHFUL = RECIPES["faithful"]
IMAGE_ANALOG = FAITHFUL.changed(ignore=("patch_embed.proj",))
RULES = {
    "faithful": FAITHFUL.changed(timesteps=8),
    "priced": FAITHFUL.changed(timesteps=8, price=3e-11),
    "32 levels": FAITHFUL.changed(timesteps=1, levels=32, ratio=2 ** (1 / 8)),
    "bursts": FAITHFUL.changed(timesteps=1, spikes_per_step=2, price=1e-11),
    "one spike": FAITHFUL.changed(input_spikes=1),
    "one spike, image analog": IMAGE_ANALOG,
    "8 powers of two, image analog": IMAGE_ANALOG.changed(levels=8, ratio=2.0, headroom=1.0),
    "4 powers of two, image analog": IMAGE_ANALOG.changed(
        levels=4, ratio=2.0, headroom=1.0, granularity="channel", rotation=True, attention_spikes=4
    ),
    "4 powers of two, bursts, image analog": IMAGE_ANALOG.changed(
        timesteps=1,
        levels=4,
        ratio=2.0,
        headroom=1.0,
        granularity="channel",
        rotation=True,
        attention_spikes=4,
        spikes_per_step=2,
        price=1e-11,
    ),
    "frugal": RECIPES["frugal"],
    "ternary, stepwise": RECIPES["ternary-stepwise"],
    "ternary, layer-synchronous": RECIPES["ternary-synchronous"],
    "binary, rate-coded": RECIPES["binary-rate"],
    "dcgs": FAITHFUL.changed(timesteps=8, coding="decaying", levels=8, ratio=2.0, headroom=4.0, **PLAIN),
    "ecmt": FAITHFUL.changed(timesteps=8, coding="rate", levels=8, ratio=2.0, percentile=99.0, headroom=2.0**7, **PLAIN),
    "rate": FAITHFUL.changed(timesteps=32, coding="rate", levels=1, headroom=1.0, **PLAIN),
}
REPORTED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def sources(model: nn.Module, data: str | None, class_map: str | None, calibration: int, samples: int) -> list[Any]:
    """This process's calibration images and scored images, with the number of each."""
    if data is None:
        found = [array_source(*demo_images(split), "L") for split in ("train", "val")]
    else:
        classes = int(model.num_classes)  # type: ignore[arg-type]
        found = [open_images(data, split, classes=classes, class_map=class_map) for split in ("train", "validation")]
    return [own_images(source, count, 0) for source, count in zip(found, (calibration, samples), strict=True)]


def add(path: Path, row: dict[str, Any]) -> None:
    """Put a result in the place of an older one of the same recipe."""
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [old for old in rows if old["recipe"] != row["recipe"]] + [row]
    rows.sort(key=lambda old: list(RULES).index(old["recipe"]))
    path.write_text("[\n  " + ",\n  ".join(json.dumps(old) for old in rows) + "\n]\n")


def shown(point: Point) -> dict[str, Any]:
    """A point of the curve, rounded."""
    fields = dataclasses.asdict(point).items()
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in fields}


def table(path: Path) -> str:
    """Agreement in %, relative error of the logits, spikes for each neuron and energy in % of the ANN's, up to each T."""
    rows = json.loads(path.read_text())
    steps = sorted({point["timestep"] for row in rows for point in row["snn"]})
    lines = ["| rule | " + " | ".join(f"T = {t}" for t in steps) + " |", "| --- |" + " --- |" * len(steps)]
    for row in rows:
        cells = dict.fromkeys(steps, "")
        for p in row["snn"]:
            agreement, percent = f"{p['agreement']:.1f}", f"{100 * p['energy']:.0f}" if "energy" in p else "-"
            cells[p["timestep"]] = f"{agreement} / {p['relative_error']:.2g} / {p['spikes_per_neuron']:.2f} / {percent}"
        lines.append(f"| {row['recipe']} | {' | '.join(cells.values())} |")
    return "\n".join(lines)


def takes_subject(command: Any) -> Any:
    """The options that say what is measured, and on what."""
    for option in (
        click.option("--class-map", help="Class folder names, one a line, where the data has only some classes."),
        click.option("--data", help="Folder with train and val."),
        click.option("--weights", help="File, instead of those that timm downloads."),
        click.option("--model", default="demo", show_default=True),
    ):
        command = option(command)
    return command


@click.command()
@takes_subject
@click.option("--rule", "rules", multiple=True, type=click.Choice(list(RULES)), default=list(RULES))
@click.option("--calibration", default=128, show_default=True)
@click.option("--samples", default=1000, show_default=True, help="Images that are scored.")
@click.option("--batch-size", default=25, show_default=True)
@click.option("--table", "only_table", is_flag=True)
def main(
    model: str, weights: str | None, data: str | None, class_map: str | None, rules: tuple[str, ...], calibration: int,
    samples: int, batch_size: int, only_table: bool,
) -> None:  # fmt: skip
    path = RESULTS / f"faithful_{model.split('.')[0]}.json"
    with launched("auto") as device:
        for rule in () if only_table else rules:
            started = time.time()
            ann = load_model(model, weights)
            (calibrating, count), (scored, total) = sources(ann, data, class_map, calibration, samples)
            images = torch.stack([sample.image for sample in prepared(ann, calibrating, count=count)]).to(device)
            snn = to_spiking(ann.to(device), RULES[rule], list(images.split(32)))
            last = RULES[rule].timesteps
            reported = [*(t for t in REPORTED if t < last), last]
            unseen = prepared(ann, scored, count=total, exclude=snn.calibrated_on)
            result = evaluate(snn, batches(unseen, batch_size), reported)
            row = {
                "recipe": rule,
                "calibration": len(snn.calibrated_on),
                "images": result.images,
                "ann_top1": result.ann_top1,
                "seconds": round(time.time() - started),
                "snn": [shown(point) for point in result.points],
            }
            if is_main():
                add(path, row)
                click.echo(json.dumps(row))
    if is_main():
        click.echo(table(path))


if __name__ == "__main__":
    main()
