"""Scoring what is in a folder: a converted model, beside its ANN, or a zoo model."""

from __future__ import annotations

import json
import sys
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
    from vit2snn.measure import Evaluation, Scores


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--timesteps", callback=timestep_list, metavar="T,T,...", help="Timesteps to report; all unless given.")
@click.option("--samples", type=click.IntRange(min=1), help="Images to score; all unless given.")
@click.option("--split", default="validation", show_default=True, help="Split of the data to score.")
@click.option("--max-drop", type=float, help="Recommend T by it; fail (exit 3) if no top-1 is within so many points.")
@click.option("--max-energy", type=click.FloatRange(min=0, min_open=True), help="The same, relative to the ANN's energy.")
@click.option(
    "--exit-confidence", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="C",
    help="Also stop each image early, once C of such calibration images kept their class.",
)  # fmt: skip
@click.option("--amp-dtype", type=click.Choice(["bfloat16", "float16"]), help="Compute what is analog in this precision.")
@data_options
def evaluate(
    out: Path, timesteps: list[int] | None, max_drop: float | None, max_energy: float | None, exit_confidence: float | None,
    amp_dtype: str | None, as_json: bool, **images: Any,
) -> None:  # fmt: skip
    """Score the model in OUT at every timestep: a converted one beside its ANN, or one of the zoo.

    Images that a converted model was calibrated on are left out. Every operation is counted. Writes evaluation.json,
    evaluation.csv and curve.svg into OUT; vit2snn report OUT makes a page of them. Several processes share the images:
    torchrun --nproc-per-node 2 -m vit2snn evaluate ...

    \b
    vit2snn evaluate demo-snn
    vit2snn evaluate deit-snn --data imagenet/val --timesteps 1,2,4,8
    vit2snn evaluate demo-snn --max-drop 1 --exit-confidence 0.99
    """
    from vit2snn.measure.text import curve_table, score_table
    from vit2snn.storage import is_model_folder

    if is_model_folder(out):
        of_anns = {
            "--max-drop": max_drop, "--max-energy": max_energy, "--exit-confidence": exit_confidence, "--amp-dtype": amp_dtype,
        }  # fmt: skip
        for option, value in of_anns.items():
            if value is not None:
                raise click.UsageError(f"{option} compares with an ANN, and a zoo model has none")
        with launched(images["device"]) as device:
            scores = _evaluate_zoo(out, timesteps, images, device)
        emit(as_json, scores.to_json(), score_table(scores))
        return
    with launched(images["device"]) as device:
        result = evaluate_artifact(out, timesteps, images, device, exit_confidence, amp_dtype)
    budgeted = max_drop is not None or max_energy is not None
    point = result.recommended(max_drop, max_energy) if budgeted else None
    document = result.to_json() | ({"recommended": point.timestep if point else None} if budgeted else {})
    text = curve_table(result)
    emit(as_json, document, f"{text}\nrecommended: T = {point.timestep}" if point else text)
    if budgeted and not point:
        last, given = result.points[-1], {"--max-drop": max_drop, "--max-energy": max_energy}
        budgets = [f"{option} {budget:g}" for option, budget in given.items() if budget is not None]
        raise QualityGateError(
            f"no T keeps to {' and '.join(budgets)}: at T = {last.timestep} top-1 is {result.ann_top1 - last.top1:.2f} points "
            f"below the ANN's, at {last.energy:.2f} of its energy"
        )


def evaluate_artifact(
    out: Path, timesteps: list[int] | None, images: dict[str, Any], device: Any, exit_confidence: float | None = None,
    amp_dtype: str | None = None,
) -> Evaluation:  # fmt: skip
    """Load a converted model, score it, write the curve into its folder; the processes of a group do it together."""
    import torch

    from vit2snn import evaluate
    from vit2snn.measure import write_evaluation

    snn, found = _artifact(out, images)
    if timesteps and timesteps[-1] > snn.recipe.timesteps:
        note(f"note: calibrated for {snn.recipe.timesteps} timesteps; later ones reuse the last thresholds")
    result = evaluate(
        snn.to(device), bar(found, "scoring"), timesteps, exit_confidence, getattr(torch, amp_dtype) if amp_dtype else None
    )
    if is_main():
        write_evaluation(result, out, title=snn.network.pretrained_cfg["architecture"], command=sys.argv)
    return result


def open_scored(out: Path, timesteps: int | None, images: dict[str, Any]) -> tuple[Any, Any]:
    """A converted model or one of the zoo, and batches of images to run it on."""
    from vit2snn.storage import is_model_folder, load_model

    if not is_model_folder(out):
        return _artifact(out, images)
    _check_zoo_data(out, images)
    model: Any = load_model(f"local-dir:{out}")
    return model, scored_batches(model, timesteps or model.timesteps, images)


def _artifact(out: Path, images: dict[str, Any]) -> tuple[Any, Any]:
    """A converted model, and this process's batches of images that it was not calibrated on."""
    from vit2snn import load
    from vit2snn.data import batches, prepared
    from vit2snn.storage.artifact import read_config

    check_data(read_config(out)["vit2snn"]["source"], images)
    snn = load(out)
    source, count = own_images(image_source(snn.network, images), images["samples"], images["seed"])
    samples = prepared(snn.network, source, count=count, seed=images["seed"], exclude=snn.calibrated_on)
    return snn, batches(samples, images["batch_size"])


def _evaluate_zoo(out: Path, timesteps: list[int] | None, images: dict[str, Any], device: Any) -> Scores:
    """Load a zoo model, score it, write the curve into its folder."""
    from dataclasses import replace

    from vit2snn.measure import score, write_evaluation
    from vit2snn.storage import load_model

    _check_zoo_data(out, images)
    model: Any = load_model(f"local-dir:{out}").to(device)
    # A recording is cut into the model's timesteps even where only the first of them are reported.
    last = max(timesteps[-1], model.timesteps) if timesteps else model.timesteps
    scores = score(model, bar(scored_batches(model, last, images, shared=True), "scoring"), last, shared=True)
    if timesteps:
        scores = replace(scores, points=tuple(point for point in scores.points if point.timestep in timesteps))
    if is_main():
        write_evaluation(scores, out, title=model.pretrained_cfg["architecture"], command=sys.argv)
    return scores


def _check_zoo_data(out: Path, images: dict[str, Any]) -> None:
    """Only what was trained on the demo's images is scored on them."""
    if not images["data"] and not _trained_on_demo(out):
        raise click.UsageError("give the images or recordings with --data DATA")


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
