"""Converting a pretrained ViT, looking at the plan, and the demo."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import IMAGES, POSITIVE, ROUNDS, TIMESTEPS, weight_bits
from vit2snn.commands.evaluation import evaluate_folder
from vit2snn.commands.images import DEMO, check_data, data_options, image_source, what_was_read
from vit2snn.commands.memory import check_conversion, check_memory
from vit2snn.commands.models import ann_options, check_scored, find_recipe, load_ann
from vit2snn.commands.output import Pass, bar, emit, fit_bar, note
from vit2snn.commands.processes import device_option, is_main, launched, own_count, own_images, wait
from vit2snn.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from vit2snn.convert import Fitting, Recipe
    from vit2snn.data import Sample
    from vit2snn.measure import Evaluation, Point

DEMO_TIMESTEPS = 8
PASSES = 10  # of --refit spikes
PLENTY = 128  # images, on which a fit of substitutes is not worth a word
COMPARED = 16  # images beside those of the calibration on which the network is compared with the ANN at the end


@click.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the converted model.")
@click.option("--recipe", default="faithful", show_default=True, metavar="NAME|FILE", help="A recipe, or its JSON file.")
@click.option("--timesteps", type=TIMESTEPS, help="T to calibrate for, instead of the recipe's.")
@click.option("--budget", type=POSITIVE, help="Energy at T, relative to the ANN's, to keep to.")
@click.option(
    "--refit",
    type=click.Choice(["none", "ridge", "blocks", "network", "spikes"]),
    help="Of new branches, instead of the recipe's; or of all weights, through the spikes of coded neurons.",
)
@click.option("--passes", type=ROUNDS, help="Over the images, of --refit spikes, or network, which goes without saying.")
@click.option("--weights", callback=weight_bits, metavar="int8|int4|...", help="Round weights to integers of 2 to 8 bits.")
@click.option("--precision", default="no", show_default=True, type=click.Choice(["no", "bf16", "fp16"]), help="Of fits.")
@click.option("--resume", is_flag=True, help="Continue a fit that was interrupted.")
@click.option("--samples", default=128, show_default=True, type=IMAGES, help="Calibration images.")
@click.option("--split", default="train", show_default=True, help="Split of the data to calibrate on.")
@ann_options
@click.option("--overwrite", is_flag=True, help="Replace an earlier conversion at OUT.")
@data_options
def convert(
    model: str, out: Path, recipe: str, timesteps: int | None, budget: float | None, refit: str | None, passes: int | None,
    weights: int | None, precision: str, resume: bool, overwrite: bool, as_json: bool, **images: Any,
) -> None:  # fmt: skip
    """Convert MODEL and write the spiking network to OUT.

    MODEL is a timm name (with tag), hf-hub:NAME, local-dir:PATH, or demo. Several processes share the calibration images:
    torchrun --nproc-per-node 2 -m vit2snn convert ... Recipes such as qkformer fit substitutes to MODEL, on some hundred images
    for some minutes; --refit spikes fits weights to the spikes of any recipe; an interrupted fit goes on with --resume.

    \b
    vit2snn convert demo -o demo-snn
    vit2snn convert deit_tiny_patch16_224.fb_in1k --data imagenet/train -o deit-snn
    vit2snn convert demo --recipe qkformer -o demo-qk
    vit2snn convert demo --weights int8 -o demo-int8
    vit2snn convert demo --recipe binary --timesteps 4 --refit spikes -o demo-binary
    """
    from vit2snn.files import check_output
    from vit2snn.finetune import check_folder, close_folder, folder_of
    from vit2snn.measure.text import parity_table
    from vit2snn.storage.artifact import is_replaceable

    if passes and refit not in (None, "network", "spikes"):
        raise click.UsageError(f"--passes are those of --refit network or spikes, got --refit {refit}")
    fit: dict[str, Any] = {"refit": "network" if passes else refit, "passes": passes}
    fit = {"refit_passes": passes or PASSES} if refit == "spikes" else fit
    chosen = find_recipe(recipe, timesteps=timesteps, max_energy=budget, weight_bits=weights, **fit)
    check_output(out, overwrite, is_replaceable)
    check_folder(out, resume, overwrite)
    with launched(images["device"]) as device, _fitting(out, chosen, precision, resume) as fitting:
        summary, result = _convert(model, out, chosen, overwrite, images, device, fitting)
    if is_main() and folder_of(out).exists():
        close_folder(out)
    told = f"{summary['spiking']} modules driven by spikes, {summary['analog']} analog, in {out}"
    emit(as_json, summary, f"{told}\n{parity_table(result, summary['parity']['calibration_images'])}")
    data = "" if model == DEMO else " --data DATA"
    note(f"score it with: vit2snn evaluate {out}{data}")


@click.command()
@click.argument("model")
@click.option("--recipe", default="faithful", show_default=True, metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(model: str, recipe: str, as_json: bool) -> None:
    """Show what a conversion of MODEL would do and what it costs, without weights or data, or the plan of a converted model.

    That one is in a folder or on the hub, hf-hub:USER/NAME.

    \b
    vit2snn inspect vit_base_patch16_224 --recipe qkformer
    vit2snn inspect demo-snn
    """
    from timm.data import resolve_model_data_config

    from vit2snn import load
    from vit2snn.convert import Recipe, load_model, plan
    from vit2snn.convert.text import plan_table
    from vit2snn.storage.artifact import is_artifact
    from vit2snn.storage.hub import is_converted

    if is_converted(model) or is_artifact(Path(model)):
        snn = load(model)
        planned, chosen = snn.plan, snn.recipe
    else:
        ann = load_model(model, pretrained=False)
        chosen = Recipe.find(recipe)
        planned = plan(ann, chosen, resolve_model_data_config(ann)["input_size"])
    document = {
        "model": model,
        "macs": planned.macs,
        "modules": [asdict(module) for module in planned.modules],
        "blocks": [asdict(block) for block in planned.blocks],
        "recipe": chosen.to_json(),
    }
    emit(as_json, document, plan_table(planned, chosen))


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder to write; vit2snn-demo unless given.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier conversion at OUT.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def demo(out: Path | None, overwrite: bool, device: str, as_json: bool) -> None:
    """Convert the embedded ViT, score it on embedded Fashion-MNIST images, and draw the curve. Needs no network."""
    from vit2snn.files import check_output
    from vit2snn.measure.text import curve_table
    from vit2snn.storage.artifact import is_replaceable

    folder = out or Path("vit2snn-demo")
    check_output(folder, overwrite or out is None, is_replaceable)
    images = {"seed": 0, "batch_size": 32, "samples": 128, "split": "train", "workers": 0}
    recipe = find_recipe("faithful", timesteps=DEMO_TIMESTEPS)
    with launched(device) as found:
        _convert(DEMO, folder, recipe, overwrite or out is None, images, found, None)
        result = evaluate_folder(folder, folder, None, images | {"samples": None, "split": "validation"}, found)
    emit(as_json, result.to_json(), curve_table(result))
    note(f"the converted model, the curve and its data are in {folder}")


@contextmanager
def _fitting(out: Path, recipe: Recipe, precision: str, resume: bool) -> Iterator[Fitting]:
    """How substitutes are fitted, with a progress bar, and checkpoints beside ``out``."""
    from vit2snn.convert import Fitting
    from vit2snn.finetune import drop_folder, folder_of, open_folder

    fits = (recipe.structure.replaces and recipe.structure.refit in ("blocks", "network")) or recipe.coded.refit_passes > 0
    folder = (open_folder(out, resume) if is_main() else folder_of(out)) if fits else None
    wait()
    try:
        with fit_bar() as report:
            yield Fitting(precision, folder, resume, report)  # type: ignore[arg-type]
    finally:
        if folder and is_main():
            drop_folder(out)


def _convert(
    name: str, out: Path, recipe: Recipe, overwrite: bool, images: dict[str, Any], device: Any, fitting: Fitting | None
) -> tuple[dict[str, Any], Evaluation]:
    """Calibrate, convert, compare with the ANN on other images, save; the summary of it, and the comparison.

    The processes of a group do it together.
    """
    import torch

    from vit2snn.convert import to_spiking
    from vit2snn.convert.branches import not_plain
    from vit2snn.data import batches
    from vit2snn.measure import evaluate
    from vit2snn.spiking.shards import processes
    from vit2snn.storage.versions import versions

    started = time.time()
    check_data(name, images)
    ann = load_ann(name, images)
    beside = check_conversion(ann, recipe, images["batch_size"], device)
    check_scored(name, ann)
    samples, others, read = _samples(ann, images, beside)
    pixels = torch.stack([sample.image for sample in samples])
    samples = [sample._replace(image=image) for sample, image in zip(samples, pixels, strict=True)]  # held once
    if recipe.structure.replaces and len(samples) * processes() < PLENTY:
        note(f"note: substitutes fitted on {len(samples) * processes()} images keep less than on some hundreds: --samples 512")
    if recipe.structure.replaces and (reason := not_plain(ann)):
        note(f"note: new attention is of the kind qk-relu here, and new perceptrons of the kind relu: {reason}")
    passes = Pass(pixels.to(device).split(images["batch_size"]), "calibrating")
    snn = to_spiking(ann.to(device), recipe, passes, images["seed"], fitting)
    known = not others  # there are no more images
    compared = others or samples[: -(-COMPARED // processes())]
    result = evaluate(snn, bar(batches(compared, images["batch_size"]), "comparing"))
    run = {
        "command": sys.argv, "data": images.get("data"), "read": read, "seed": images["seed"], "versions": versions(),
        "seconds": round(time.time() - started, 1),
    }  # fmt: skip
    by_name = {error.name: error.relative_error for error in result.modules}
    parity = {"images": result.images, "calibration_images": known, "snn": [_parity(point) for point in result.points]}
    if is_main():
        records = {"run.json": run, "parity.json": parity}
        snn.save(out, source=name, overwrite=overwrite, records=records, errors=by_name)
    wait()
    actions = [module.action for module in snn.plan.modules]
    summary = {
        "out": str(out),
        "timesteps": recipe.timesteps,
        "images": len(samples) * processes(),
        **{action: actions.count(action) for action in ("spiking", "analog", "ignored")},
        "parity": parity,
        "worst": [{"neuron": e.name, "relative_error": e.relative_error[-1]} for e in result.modules[:3]],
    }
    return summary, result


def _samples(ann: nn.Module, images: dict[str, Any], beside: int) -> tuple[list[Sample], list[Sample], dict[str, Any]]:
    """This process's images to calibrate on, as many as the other processes have, and to compare with the ANN on.

    Beside them, what was read, for the record. A fit holds so many bytes of an image ``beside`` it.
    """
    import torch
    from timm.data import resolve_model_data_config

    from vit2snn.convert.fit_branches import HELD
    from vit2snn.data import prepared
    from vit2snn.spiking.shards import processes, smallest

    wanted = images["samples"] + COMPARED
    source, count = own_images(image_source(ann, images), wanted, images["seed"])
    calibrating = min(count or wanted, images["samples"])
    check_memory(source, calibrating, resolve_model_data_config(ann)["input_size"], beside, HELD)
    found = list(bar(prepared(ann, source, count=count, seed=images["seed"], workers=images["workers"]), "reading images"))
    samples = found[: own_count(images["samples"])]
    samples = samples[: int(smallest(torch.tensor(len(samples))))]
    if not samples:
        raise DataError("there are no images to calibrate on", "give a folder with images to --data")
    used = len(samples) * processes()
    if used < images["samples"]:
        shares = "all" if processes() == 1 else f"{len(samples)} in each of {processes()} processes"
        note(f"note: {used} images are used to calibrate ({shares}), not {images['samples']}")
    others = found[len(samples) :]
    enough = int(smallest(torch.tensor(len(others)))) * processes() > 1  # the features of one image have no neighbours
    return samples, others if enough else [], what_was_read(source, images)


def _parity(point: Point) -> dict[str, Any]:
    """What of a point of the curve can be told on few images, perhaps of the calibration: not the accuracy."""
    return {name: value for name, value in point.to_json().items() if name != "top1"}
