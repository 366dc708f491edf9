"""Auditing what is in a folder: how spike-driven a converted model, or one of the zoo, really is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vit2snn.commands.bounds import IMAGES, TIMESTEPS
from vit2snn.commands.evaluation import open_scored
from vit2snn.commands.images import data_options
from vit2snn.commands.memory import check_run
from vit2snn.commands.output import bar, emit
from vit2snn.commands.processes import is_main, launched
from vit2snn.errors import QualityGateError


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--timesteps", type=TIMESTEPS, help="T, instead of the model's.")
@click.option("--samples", default=8, show_default=True, type=IMAGES, help="Images to look at.")
@click.option("--split", default="validation", show_default=True, help="Split of the data to look at.")
@click.option("--require", type=click.Choice(["addition-only"]), help="Fail (exit 3) if any operation multiplies.")
@click.option("--replay", "replayed", is_flag=True, help="Also run one image event by event, adding weights only. Slow.")
@data_options
def audit(out: Path, timesteps: int | None, require: str | None, replayed: bool, as_json: bool, **images: Any) -> None:
    """Tell of every operation of the model in OUT what its operands are, as observed, and whether it only adds.

    Operands are binary, ternary, powers of two, geometric (2^(k/m): with m stored versions of what they meet, as x2, x3, ...),
    integers (so many spikes) or analog. Nothing is taken from the names of modules. Several processes share the images:
    torchrun --nproc-per-node 2 -m vit2snn audit ... OUT may be on the hub: hf-hub:USER/NAME.

    \b
    vit2snn audit demo-snn
    vit2snn audit demo-snn --replay --require addition-only
    """
    from vit2snn.measure import audit as audited, replay
    from vit2snn.measure.text import audit_table, replay_line
    from vit2snn.storage.hub import find

    out = find(out).folder
    with launched(images["device"]) as device:
        model, batches = open_scored(out, timesteps, images)
        check_run(model, images, device, "look at a model of smaller images", timesteps=1)  # one by one
        found = [x.to(device) for x, _ in bar(batches, "looking")]
        result = audited(model.to(device), found, timesteps)
    document, text = result.to_json(), audit_table(result)
    if replayed and is_main():
        first = found[0]
        again = replay(model, first[:, :1] if first.ndim == 5 else first[:1], timesteps)
        document["replay"] = asdict(again)
        text = f"{text}\n{replay_line(again)}"
    emit(as_json, document, text)
    if require and not document["addition_only"]:
        multiplying = [row.module for row in sorted(result.rows, key=lambda row: -row.multiplies) if row.multiplies]
        raise QualityGateError(
            f"{len(multiplying)} kinds of operations multiply, most of all {', '.join(multiplying[:3])}",
            "the spike-driven recipes (qkformer, experts, spike-driven) multiply only where the image comes in",
        )
