"""Scoring what is in a folder: a converted model, beside its ANN, or a zoo model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import IMAGES, POSITIVE, Number, bit_list, timestep_list
from vit2snn.commands.images import Scored, check_data, data_options, event_source, image_source, what_was_read
from vit2snn.commands.memory import check_run
from vit2snn.commands.output import bar, emit, note
from vit2snn.commands.processes import is_main, launched, own_events, own_images
from vit2snn.errors import QualityGateError

if TYPE_CHECKING:
    from vit2snn.measure import Evaluation


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--timesteps", callback=timestep_list, metavar="T,T,...", help="Timesteps to report; all unless given.")
@click.option("--samples", type=IMAGES, help="Images to score; all unless given.")
@click.option("--split", default="validation", show_default=True, help="Split of the data to score.")
@click.option("--max-drop", type=Number(), help="Recommend T by it; fail (exit 3) if no T loses so few points.")
@click.option("--max-energy", type=POSITIVE, help="The same by energy, relative to the ANN's.")
@click.option(
    "--exit-confidence", type=Number(0, 1, min_open=True, max_open=True), metavar="C",
    help="Also stop each image early, once C of such calibration images kept their class.",
)  # fmt: skip
@click.option("--amp-dtype", type=click.Choice(["bfloat16", "float16"]), help="Compute what is analog in this precision.")
@click.option("--against", callback=bit_list, metavar="int8,int4,...", help="Also score the ANN quantised to so many bits.")
@click.option("--neurobench", metavar="FILE", type=click.Path(path_type=Path), help="Also write the metrics of NeuroBench.")
@click.option("-o", "--out", "results", metavar="FOLDER", type=click.Path(path_type=Path), help="To write to, instead of OUT.")
@data_options
def evaluate(
    out: Path, results: Path | None, timesteps: list[int] | None, max_drop: float | None, max_energy: float | None,
    exit_confidence: float | None, amp_dtype: str | None, against: list[int], neurobench: Path | None, as_json: bool,
    **images: Any,
) -> None:  # fmt: skip
    """Score the model in OUT at every timestep: a converted one beside its ANN, or one of the zoo.

    Images that a converted model was calibrated on are left out. Every operation is counted. Writes evaluation.json,
    evaluation.csv and curve.svg into OUT; vit2snn report OUT makes a page of them. Several processes share the images:
    torchrun --nproc-per-node 2 -m vit2snn evaluate ... OUT may be on the hub, hf-hub:USER/NAME: then nothing is written unless
    --out says where.

    \b
    vit2snn evaluate demo-snn
    vit2snn evaluate deit-snn --data imagenet/val --timesteps 1,2,4,8
    vit2snn evaluate demo-snn --max-drop 1 --exit-confidence 0.99
    vit2snn evaluate demo-snn --against int8,int4
    vit2snn evaluate demo-snn --neurobench metrics.json
    """
    from vit2snn.measure.text import curve_table
    from vit2snn.storage import is_model_folder
    from vit2snn.storage.hub import find

    place = find(out)
    if max_drop is not None and is_model_folder(place.folder):
        raise click.UsageError("--max-drop compares with an ANN, and a zoo model has none")
    if against and is_model_folder(place.folder):
        raise click.UsageError("--against quantises an ANN, and a zoo model has none")
    if neurobench and amp_dtype:
        raise click.UsageError("--neurobench counts in full precision: leave out --amp-dtype")
    _check_results(results)
    if neurobench:
        _check_metrics(neurobench)
    written = results or (None if place.shared else place.folder)
    with launched(images["device"]) as device:
        result = evaluate_folder(
            place.folder, written, timesteps, images, device, exit_confidence, amp_dtype, place.name, against, neurobench
        )
    if written is None:
        note("note: beside a model of the hub nothing is written; --out FOLDER gets evaluation.json, .csv and curve.svg")
    budgeted = max_drop is not None or max_energy is not None
    point = result.recommended(max_drop, max_energy) if budgeted else None
    document = result.to_json() | ({"recommended": point.timestep if point else None} if budgeted else {})
    text = curve_table(result)
    emit(as_json, document, f"{text}\nrecommended: T = {point.timestep}" if point else text)
    if budgeted and not point:
        raise _over_budget(result, max_drop, max_energy)


def _check_results(folder: Path | None) -> None:
    """Refuse to replace anything in a folder but an earlier evaluation."""
    from vit2snn.files import check_output
    from vit2snn.storage.evaluations import FILES

    if folder is not None:
        check_output(folder, True, lambda found: {entry.name for entry in found.iterdir()} <= set(FILES))


def _check_metrics(file: Path) -> None:
    """Refuse to replace anything but earlier metrics of NeuroBench, and a folder that is not there."""
    from vit2snn.errors import ArtifactError, OutputExistsError
    from vit2snn.reading import read_json

    if not file.parent.is_dir():
        raise ArtifactError(f"{str(file.parent)!r} is no folder to write {file.name!r} into", "make it first")
    try:
        is_replaceable = not file.exists() or "neurobench" in read_json(file, dict)
    except ArtifactError:  # it is no JSON
        is_replaceable = False
    if not is_replaceable:
        raise OutputExistsError(f"{str(file)!r} exists, and holds no metrics of NeuroBench", "choose another file")


def _over_budget(result: Evaluation, max_drop: float | None, max_energy: float | None) -> QualityGateError:
    """What the last point of a curve needs and loses."""
    from vit2snn.measure.text import drop_line

    last, given = result.points[-1], {"--max-drop": max_drop, "--max-energy": max_energy}
    budgets = [f"{option} {budget:g}" for option, budget in given.items() if budget is not None]
    if result.ann is None:
        found = f"{last.energy:.2f} of the energy of one pass on numbers is needed"
    else:
        found = f"{drop_line(result)}, at {last.energy:.2f} of the ANN's energy"
    return QualityGateError(f"no T keeps to {' and '.join(budgets)}: at T = {last.timestep} {found}")


def evaluate_folder(
    out: Path, written: Path | None, timesteps: list[int] | None, images: dict[str, Any], device: Any,
    exit_confidence: float | None = None, amp_dtype: str | None = None, name: str = "", against: Sequence[int] = (),
    neurobench: Path | None = None,
) -> Evaluation:  # fmt: skip
    """Load a model, score it, write the curve; the processes of a group do it together.

    Args:
        out: folder of the model.
        written: folder for the curve, if it is to be written.
        timesteps: to report; all unless given.
        images: the options of the data.
        device: of torch.
        exit_confidence: of `vit2snn.evaluate`.
        amp_dtype: by name, of the same.
        name: of the model, for the record where its folder is another one.
        against: bits of quantised ANNs to score beside it.
        neurobench: file for the metrics of NeuroBench, if they are wanted.
    """
    import torch

    from vit2snn import evaluate
    from vit2snn.convert import quantised
    from vit2snn.files import write_whole
    from vit2snn.measure import NeuroBench
    from vit2snn.storage.evaluations import write_evaluation

    network, found = open_scored(out, timesteps[-1] if timesteps else None, images, whole=True)
    check_run(network, images, device, "score a model of smaller images", timesteps[-1] if timesteps else None)
    precision = getattr(torch, amp_dtype) if amp_dtype else None
    rivals = {bits: quantised(network, bits) for bits in against}
    network.to(device)
    bench = NeuroBench(network, timesteps[-1] if timesteps else None) if neurobench else None
    batches = bench.counted(bar(found, "scoring")) if bench else bar(found, "scoring")
    result = evaluate(network, batches, timesteps, exit_confidence, precision, against=rivals)
    metrics = bench.metrics(result) if bench else {}  # of all processes
    if is_main() and neurobench:
        write_whole(neurobench, json.dumps(metrics, indent=2) + "\n")
    read = what_was_read(found.source, images)
    if is_main() and written is not None:
        written.mkdir(parents=True, exist_ok=True)
        title, model = network.network.pretrained_cfg["architecture"], name if written != out else ""
        write_evaluation(result, written, title=title, command=sys.argv, read=read, model=model)
    return result


def open_scored(out: Path, timesteps: int | None, images: dict[str, Any], whole: bool = False) -> tuple[Any, Scored]:
    """A converted model or one of the zoo, and this process's batches of images to run it on.

    Args:
        out: its folder.
        timesteps: that it will be run for; its own unless given.
        images: the options of the data.
        whole: whether a recording is cut into all timesteps of the model even where fewer are asked for.
    """
    from vit2snn.storage import is_model_folder, open_network
    from vit2snn.storage.documents import trained_on_demo

    if not is_model_folder(out):
        return _artifact(out, timesteps, images)
    if not images["data"] and not trained_on_demo(out):  # only what was trained on the demo's images is scored on them
        raise click.UsageError("give the images or recordings with --data DATA")
    model: Any = open_network(out)
    cut = max(timesteps or 0, model.timesteps) if whole else timesteps or model.timesteps
    return model, scored_batches(model, cut, images)


def _artifact(out: Path, timesteps: int | None, images: dict[str, Any]) -> tuple[Any, Scored]:
    """A converted model, and this process's batches of images that it was not calibrated on."""
    from vit2snn import load
    from vit2snn.data import batches, prepared
    from vit2snn.storage.artifact import read_config

    check_data(read_config(out)["vit2snn"]["source"], images)
    snn = load(out)
    if timesteps and timesteps > snn.timesteps:
        note(f"note: calibrated for {snn.timesteps} timesteps; later ones reuse the last thresholds")
    source, count = own_images(image_source(snn.network, images), images["samples"], images["seed"])
    samples = prepared(
        snn.network, source, count=count, seed=images["seed"], exclude=snn.calibrated_on, workers=images["workers"]
    )
    return snn, Scored(batches(samples, images["batch_size"]), source)


def scored_batches(model: Any, timesteps: int, images: dict[str, Any]) -> Scored:
    """This process's batches of images, or of frames, to score a zoo model on."""
    from vit2snn.data import batches, event_batches, prepared

    seed, batch_size, workers = images["seed"], images["batch_size"], images["workers"]
    events = event_source(model, images)
    if events is not None:
        own, count = own_events(events, images["samples"], seed)
        size = model.pretrained_cfg["input_size"][1:]
        return Scored(event_batches(own, timesteps, size, batch_size, count, seed, workers), events)
    source, count = own_images(image_source(model, images), images["samples"], seed)
    return Scored(batches(prepared(model, source, count=count, seed=seed, workers=workers), batch_size), source)
