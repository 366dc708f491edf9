"""The command line. Results go to stdout, everything else to stderr; torch and timm are imported by the commands.

Exit codes: 0 done; 1 a known failure; 2 wrong usage; 3 a quality gate failed; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn import __version__
from vit2snn.errors import DataError, QualityGateError, Vit2SnnError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vit2snn.convert import Recipe
    from vit2snn.data import ImageSource
    from vit2snn.evaluation import Evaluation

DEMO = "demo"
DEMO_TIMESTEPS = 8


class _Cli(click.Group):
    """A group whose known errors become one sentence, a hint and an exit code."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        kwargs["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **kwargs)
        except click.Abort:
            click.echo("interrupted; nothing half-written is left", err=True)
            sys.exit(130)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except Vit2SnnError as error:
            if "--debug" in args or os.environ.get("VIT2SNN_DEBUG"):
                raise
            click.echo(f"Error: {error}", err=True)
            if error.hint:
                click.echo(f"Hint: {error.hint}", err=True)
            sys.exit(error.exit_code)
        sys.exit(code if isinstance(code, int) else 0)


def _timesteps(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """``1,2,4,8`` as a sorted list."""
    if value is None:
        return None
    try:
        steps = sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of timesteps such as 1,2,4,8") from None
    if steps[0] < 1:
        raise click.BadParameter("timesteps are at least 1")
    return steps


DATA_OPTIONS = [
    click.option("--data", metavar="DATA", help="Image folder, or hfds/NAME, wds/NAME, torch/NAME as in timm."),
    click.option("--data-dir", metavar="DIR", help="Where a data set given as PREFIX/NAME lies."),
    click.option("--class-map", type=click.Path(exists=True, dir_okay=False), help="Class folder names, one a line."),
    click.option("--seed", default=0, show_default=True, help="Of the choice of images."),
    click.option("--batch-size", default=16, show_default=True, type=click.IntRange(min=1)),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ..."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
]


def data_options(command: Any) -> Any:
    """Add the options that commands with images share."""
    for option in reversed(DATA_OPTIONS):
        command = option(command)
    return command


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "VIT2SNN"})
@click.version_option(__version__, prog_name="vit2snn")
@click.option("--debug", is_flag=True, help="Show the traceback of a known failure.")
def cli(debug: bool) -> None:
    """Convert pretrained Vision Transformers from timm into spiking neural networks."""


@cli.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the converted model.")
@click.option("--recipe", default="faithful", show_default=True, metavar="NAME|FILE", help="A recipe, or its JSON file.")
@click.option("--timesteps", type=click.IntRange(min=1), help="T to calibrate for, instead of the recipe's.")
@click.option("--samples", default=128, show_default=True, type=click.IntRange(min=1), help="Calibration images.")
@click.option("--split", default="train", show_default=True, help="Split of the data to calibrate on.")
@click.option("--checkpoint", type=click.Path(exists=True, dir_okay=False), help="Weights: .safetensors or .pth.")
@click.option("--num-classes", type=click.IntRange(min=1), help="Size of the head, if not the architecture's.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier conversion at OUT.")
@data_options
def convert(
    model: str, out: Path, recipe: str, timesteps: int | None, checkpoint: str | None, num_classes: int | None,
    overwrite: bool, as_json: bool, **images: Any,
) -> None:  # fmt: skip
    """Convert MODEL and write the spiking network to OUT.

    MODEL is a timm name (with tag), hf-hub:NAME, local-dir:PATH, or demo.

    \b
    vit2snn convert demo -o demo-snn
    vit2snn convert deit_tiny_patch16_224.fb_in1k --data imagenet/train -o deit-snn
    """
    summary = _convert(model, out, _recipe(recipe, timesteps), checkpoint, num_classes, overwrite, images)
    _emit(as_json, summary, f"{summary['spiking']} modules driven by spikes, {summary['analog']} analog, in {out}")
    data = "" if model == DEMO else " --data DATA"
    click.echo(f"score it with: vit2snn evaluate {out}{data}", err=True)


@cli.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--timesteps", callback=_timesteps, metavar="T,T,...", help="Timesteps to report; all up to the recipe's unless given."
)
@click.option("--samples", type=click.IntRange(min=1), help="Images to score; all unless given.")
@click.option("--split", default="validation", show_default=True, help="Split of the data to score.")
@click.option("--max-drop", type=float, help="Fail (exit 3) if the last top-1 is more points below the ANN's.")
@data_options
def evaluate(out: Path, timesteps: list[int] | None, max_drop: float | None, as_json: bool, **images: Any) -> None:
    """Score the converted model in OUT at every timestep, beside its ANN.

    Images that it was calibrated on are left out. Writes evaluation.json, evaluation.csv and curve.svg into OUT.

    \b
    vit2snn evaluate demo-snn
    vit2snn evaluate deit-snn --data imagenet/val --timesteps 1,2,4,8
    """
    from vit2snn.evaluation.text import curve_table

    result = _evaluate(out, timesteps, images)
    _emit(as_json, result.to_json(), curve_table(result))
    drop = result.ann_top1 - result.points[-1].top1
    if max_drop is not None and drop > max_drop:
        raise QualityGateError(
            f"top-1 drops by {drop:.2f} points at T={result.points[-1].timestep}, more than --max-drop {max_drop}"
        )


@cli.command()
@click.argument("model")
@click.option("--recipe", default="faithful", show_default=True, metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(model: str, recipe: str, as_json: bool) -> None:
    """Show what a conversion of MODEL would do, without weights or data.

    \b
    vit2snn inspect vit_base_patch16_224
    """
    from dataclasses import asdict

    from timm.data import resolve_model_data_config

    from vit2snn.convert import Recipe, load_model, plan
    from vit2snn.evaluation.text import table

    ann = load_model(model, pretrained=False)
    planned = plan(ann, Recipe.find(recipe), resolve_model_data_config(ann)["input_size"])
    rows = [
        [m.name, m.type, m.action, "+".join(m.operations).replace("scaled_dot_product_", ""), f"{m.macs / 1e6:.2f}"]
        for m in planned.modules
    ]
    text = table(["module", "type", "action", "operations", "MMAC"], rows)
    _emit(
        as_json,
        {"model": model, "macs": planned.macs, "modules": [asdict(module) for module in planned.modules]},
        f"{text}\n{planned.macs / 1e9:.3f} GMAC for one image",
    )


@cli.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder to write; vit2snn-demo unless given.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier conversion at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def demo(out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Convert the embedded ViT, score it on embedded Fashion-MNIST images, and draw the curve. Needs no network."""
    from vit2snn.evaluation.text import curve_table

    folder = out or Path("vit2snn-demo")
    images = {"seed": 0, "batch_size": 32, "device": "auto", "samples": 128, "split": "train"}
    _convert(DEMO, folder, _recipe("faithful", DEMO_TIMESTEPS), None, None, overwrite or out is None, images)
    result = _evaluate(folder, None, images | {"samples": None, "split": "validation"})
    _emit(as_json, result.to_json(), curve_table(result))
    click.echo(f"the converted model, the curve and its data are in {folder}", err=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def env(as_json: bool) -> None:
    """Print versions and devices, to paste into an issue."""
    import platform

    import torch

    from vit2snn.convert.artifact import versions

    found = versions() | {
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "cuda": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
    }
    _emit(as_json, found, "\n".join(f"{name}: {value}" for name, value in found.items()))


def _convert(
    name: str, out: Path, recipe: Recipe, checkpoint: str | None, num_classes: int | None, overwrite: bool,
    images: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Calibrate, convert, diagnose, save; the summary of it."""
    import torch
    from timm.data import resolve_model_data_config

    from vit2snn.convert import load_model, plan, to_spiking
    from vit2snn.convert.artifact import is_artifact, versions
    from vit2snn.convert.files import check_output
    from vit2snn.data import prepared
    from vit2snn.evaluation import diagnose

    started = time.time()
    check_output(out, overwrite, is_artifact)
    _check_data(name, images)
    device = _device(images["device"])
    ann = load_model(name, checkpoint, num_classes)
    plan(ann, recipe, resolve_model_data_config(ann)["input_size"])  # refuses what it cannot convert before images are read
    source = _source(ann, images)
    samples = list(_bar(prepared(ann, source, count=images["samples"], seed=images["seed"]), "reading images"))
    if not samples:
        raise DataError("there are no images to calibrate on", "give a folder with images to --data")
    if len(samples) < images["samples"]:
        click.echo(f"note: the data holds {len(samples)} images, all are used to calibrate", err=True)
    pixels = torch.stack([sample.image for sample in samples])
    snn = to_spiking(ann.to(device), recipe, _Pass(pixels.to(device).split(images["batch_size"]), "calibrating"))
    errors = diagnose(snn, pixels[:8].to(device))
    run = {"command": sys.argv, "seed": images["seed"], "versions": versions(), "seconds": round(time.time() - started, 1)}
    by_name = {error.name: error.relative_error for error in errors}
    snn.save(out, source=name, overwrite=overwrite, records={"run.json": run}, errors=by_name)
    actions = [module.action for module in snn.plan.modules]
    return {
        "out": str(out),
        "timesteps": recipe.timesteps,
        "images": len(samples),
        **{action: actions.count(action) for action in ("spiking", "analog", "ignored")},
        "worst": [{"neuron": e.name, "relative_error": e.relative_error[-1]} for e in errors[:3]],
    }


def _evaluate(out: Path, timesteps: list[int] | None, images: dict[str, Any]) -> Evaluation:
    """Load, score, write the curve into the artifact."""
    from vit2snn import evaluate, load
    from vit2snn.convert.artifact import read_config
    from vit2snn.data import batches, prepared
    from vit2snn.evaluation import write_evaluation

    config = read_config(out)
    _check_data(config["vit2snn"]["source"], images)
    snn = load(out).to(_device(images["device"]))
    source = _source(snn.network, images)
    if timesteps and timesteps[-1] > snn.recipe.timesteps:
        click.echo(f"note: calibrated for {snn.recipe.timesteps} timesteps; later ones reuse the last thresholds", err=True)
    samples = prepared(snn.network, source, count=images["samples"], seed=images["seed"], exclude=snn.calibrated_on)
    total = images["samples"] or (len(source.labels) if source.labels is not None else None)
    result = evaluate(snn, batches(_bar(samples, "scoring", total), images["batch_size"]), timesteps)
    write_evaluation(result, out, title=config["vit2snn"]["source"])
    return result


def _check_data(name: str, images: dict[str, Any]) -> None:
    if name != DEMO and not images.get("data"):
        raise click.UsageError("give the images with --data DATA (only the demo model brings its own)")


def _source(model: nn.Module, images: dict[str, Any]) -> ImageSource:
    """The images of a command: those of --data, or the embedded ones of the demo."""
    from vit2snn.data import array_source, open_images
    from vit2snn.zoo.demo import demo_images

    if images.get("data"):
        channels = int(getattr(model, "in_chans", 3))
        return open_images(
            images["data"], images["split"], classes=int(model.num_classes), mode="L" if channels == 1 else "RGB",  # type: ignore[arg-type]
            root=images["data_dir"], class_map=images["class_map"],
        )  # fmt: skip
    return array_source(*demo_images("train" if images["split"] == "train" else "val"))


def _recipe(name: str, timesteps: int | None) -> Recipe:
    import dataclasses

    from vit2snn.convert import Recipe

    recipe = Recipe.find(name)
    return recipe if timesteps is None else dataclasses.replace(recipe, timesteps=timesteps)


def _device(name: str) -> Any:
    import torch

    torch.set_flush_denormal(True)  # softmax tails are denormal, and an order of magnitude slower
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise click.UsageError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def _bar(items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar on stderr, when that is a terminal."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, total=total, file=sys.stderr, disable=None, leave=False))


class _Pass:
    """Batches with a progress bar for each pass over them."""

    def __init__(self, batches: Iterable[Tensor], what: str) -> None:
        self.batches, self.what = batches, what

    def __iter__(self) -> Iterator[Tensor]:
        return _bar(self.batches, self.what)


def _emit(as_json: bool, document: Any, text: str) -> None:
    click.echo(json.dumps(document) if as_json else text)


def main() -> None:
    """The console script."""
    cli()


if __name__ == "__main__":
    main()
