"""Scoring what is in a folder: a converted model, beside its ANN, or a zoo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.shared import (
    bar,
    check_data,
    data_options,
    emit,
    event_source,
    image_source,
    is_main,
    launched,
    note,
    own_events,
    own_images,
    timestep_list,
)
from vit2snn.errors import QualityGateError

if TYPE_CHECKING:
    from vit2snn.evaluation import Evaluation, Scores


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--timesteps", callback=timestep_list, metavar="T,T,...", help="Timesteps to report; all unless given.")
@click.option("--samples", type=click.IntRange(min=1), help="Images to score; all unless given.")
@click.option("--split", default="validation", show_default=True, help="Split of the data to score.")
@click.option("--max-drop", type=float, help="Fail (exit 3) if the last top-1 is more points below the ANN's.")
@data_options
def evaluate(out: Path, timesteps: list[int] | None, max_drop: float | None, as_json: bool, **images: Any) -> None:
    """Score the model in OUT at every timestep: a converted one beside its ANN, or one of the zoo.

    Images that a converted model was calibrated on are left out. Writes evaluation.json, evaluation.csv and curve.svg into OUT.
    Several processes share the images: torchrun --nproc-per-node 2 -m vit2snn evaluate ...

    \b
    vit2snn evaluate demo-snn
    vit2snn evaluate deit-snn --data imagenet/val --timesteps 1,2,4,8
    """
    from vit2snn.convert import is_model_folder
    from vit2snn.evaluation.text import curve_table, score_table

    if is_model_folder(out):
        if max_drop is not None:
            raise click.UsageError("--max-drop compares with an ANN, and a zoo model has none")
        with launched(images["device"]) as device:
            scores = _evaluate_zoo(out, timesteps, images, device)
        emit(as_json, scores.to_json(), score_table(scores))
        return
    with launched(images["device"]) as device:
        result = evaluate_artifact(out, timesteps, images, device)
    emit(as_json, result.to_json(), curve_table(result))
    drop = result.ann_top1 - result.points[-1].top1
    if max_drop is not None and drop > max_drop:
        raise QualityGateError(
            f"top-1 drops by {drop:.2f} points at T={result.points[-1].timestep}, more than --max-drop {max_drop}"
        )


def evaluate_artifact(out: Path, timesteps: list[int] | None, images: dict[str, Any], device: Any) -> Evaluation:
    """Load a converted model, score it, write the curve into its folder; the processes of a group do it together."""
    from vit2snn import evaluate, load
    from vit2snn.convert.artifact import read_config
    from vit2snn.data import batches, prepared
    from vit2snn.evaluation import write_evaluation

    config = read_config(out)
    check_data(config["vit2snn"]["source"], images)
    snn = load(out).to(device)
    source, count = own_images(image_source(snn.network, images), images["samples"], images["seed"])
    if timesteps and timesteps[-1] > snn.recipe.timesteps:
        note(f"note: calibrated for {snn.recipe.timesteps} timesteps; later ones reuse the last thresholds")
    samples = prepared(snn.network, source, count=count, seed=images["seed"], exclude=snn.calibrated_on)
    total = count or (len(source.labels) if source.labels is not None else None)
    result = evaluate(snn, batches(bar(samples, "scoring", total), images["batch_size"]), timesteps)
    if is_main():
        write_evaluation(result, out, title=config["vit2snn"]["source"])
    return result


def _evaluate_zoo(out: Path, timesteps: list[int] | None, images: dict[str, Any], device: Any) -> Scores:
    """Load a zoo model, score it, write the curve into its folder."""
    from dataclasses import replace

    from vit2snn.convert import load_model
    from vit2snn.evaluation import score, write_evaluation

    if not images["data"] and not _trained_on_demo(out):
        raise click.UsageError("give the images or recordings with --data DATA")
    model: Any = load_model(f"local-dir:{out}").to(device)
    # A recording is cut into the model's timesteps even where only the first of them are reported.
    last = max(timesteps[-1], model.timesteps) if timesteps else model.timesteps
    scores = score(model, bar(scored_batches(model, last, images, shared=True), "scoring"), last, shared=True)
    if timesteps:
        scores = replace(scores, points=tuple(point for point in scores.points if point.timestep in timesteps))
    if is_main():
        write_evaluation(scores, out, title=model.pretrained_cfg["architecture"])
    return scores


def _trained_on_demo(out: Path) -> bool:
    try:
        return json.loads((out / "run.json").read_text(encoding="utf-8"))["data"] is None
    except (OSError, ValueError, LookupError):
        return False


def scored_batches(model: Any, timesteps: int, images: dict[str, Any], shared: bool = False) -> Any:
    """Batches of images, or of frames, to score a zoo model on: all, or this process's share."""
    from vit2snn.data import batches, event_batches, prepared

    count, seed, batch_size = images["samples"], images["seed"], images["batch_size"]
    events = event_source(model, images)
    if events is not None:
        events, count = own_events(events, count, seed) if shared else (events, count)
        return event_batches(events, timesteps, model.pretrained_cfg["input_size"][1:], batch_size, count, seed)
    source = image_source(model, images)
    source, count = own_images(source, count, seed) if shared else (source, count)
    return batches(prepared(model, source, count=count, seed=seed), batch_size)
