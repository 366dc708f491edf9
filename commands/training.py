"""Training a zoo model from scratch."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.evaluation import scored_batches
from vit2snn.commands.shared import bar, data_options, emit, event_source, find_device, image_source
from vit2snn.errors import ModelError

if TYPE_CHECKING:
    from vit2snn.finetune import Step


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``depth=2`` as name and text."""
    pairs = {}
    for value in values:
        name, equals, pairs[name] = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
    return pairs


@click.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the trained model.")
@click.option("-a", "--argument", "arguments", multiple=True, callback=_pairs, metavar="NAME=VALUE", help="Of the model.")
@click.option("--img-size", type=click.IntRange(min=1), help="Height and width to resize to, if not the model's.")
@click.option("--num-classes", type=click.IntRange(min=1), help="Size of the head, if not the model's.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--lr", default=2e-3, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Peak learning rate.")
@click.option("--samples", type=click.IntRange(min=1), help="Images to score at the end; all unless given.")
@click.option("--split", default="validation", show_default=True, help="Split of the data to score.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier model at OUT.")
@data_options
def train(
    model: str, out: Path, arguments: dict[str, str], img_size: int | None, num_classes: int | None, epochs: int, lr: float,
    overwrite: bool, as_json: bool, **images: Any,
) -> None:  # fmt: skip
    """Train the zoo model MODEL from scratch, score it at every timestep, and write it to OUT.

    Without --data, on the images of the demo. Event recordings are read as frames.

    \b
    vit2snn train qkformer_4_384_cifar10 -a dims=[32,64,128] --data cifar10 -o qk
    """
    import torch

    from vit2snn.convert import is_model_folder, save_model
    from vit2snn.convert.artifact import versions
    from vit2snn.convert.files import check_output
    from vit2snn.evaluation import score
    from vit2snn.evaluation.text import score_table
    from vit2snn.finetune import train as fit

    started = time.time()
    check_output(out, overwrite, is_model_folder)
    random.seed(images["seed"])
    torch.manual_seed(images["seed"])
    device = find_device(images["device"])
    network = _create(model, arguments, img_size, num_classes).to(device)
    fit(network, _training_batches(network, images), epochs, lr=lr, report=_Progress(epochs))
    scores = score(network, bar(scored_batches(network, network.timesteps, images), "scoring"))
    run = {
        "command": sys.argv, "data": images["data"], "seed": images["seed"], "epochs": epochs, "lr": lr, "versions": versions(),
        "seconds": round(time.time() - started, 1),
    }  # fmt: skip
    save_model(network, out, overwrite=overwrite, records={"run.json": run, "evaluation.json": scores.to_json()})
    parameters = sum(p.numel() for p in network.parameters())
    document = {"out": str(out), "parameters": parameters, "seconds": run["seconds"], **scores.to_json()}
    emit(as_json, document, f"{parameters:,} parameters, {run['seconds']:.0f} s\n{score_table(scores)}")


def _create(name: str, given: dict[str, str], img_size: int | None, num_classes: int | None) -> Any:
    """The untrained model."""
    import inspect

    import timm

    from vit2snn.zoo import VARIANTS

    if name not in VARIANTS:
        raise ModelError(f"the zoo has no model {name!r}", "vit2snn zoo list shows all")
    variant = VARIANTS[name]
    known = inspect.signature(variant.architecture).parameters
    for argument in given:
        if argument not in known:
            raise ModelError(f"{name} has no argument {argument!r}", f"choose of {', '.join(known)}")
    # Text stays text where the model takes text: a JSON reader would make a number of pools=0011.
    textual = {key for key, parameter in known.items() if str(parameter.annotation).startswith("str")}
    arguments = {key: text if key in textual else _value(key, text) for key, text in given.items()}
    channels = variant.cfg["input_size"][0]
    overlay = {"input_size": (channels, img_size, img_size)} if img_size else {}
    try:
        return timm.create_model(name, pretrained_cfg_overlay=overlay, num_classes=num_classes, **arguments)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{name} cannot be made with {arguments}: {error}", "see its class in vit2snn.zoo") from error


def _value(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise click.UsageError(f"{name}={text} is not a number, a truth value or a list as in JSON") from None


def _training_batches(network: Any, images: dict[str, Any]) -> Any:
    from vit2snn.data import training_events, training_images

    trained = images | {"split": "train"}
    size = network.pretrained_cfg["input_size"][1:]
    events = event_source(network, trained)
    if events is not None:
        return training_events(events, network.timesteps, size, images["batch_size"], images["seed"])
    return training_images(network, image_source(network, trained), images["batch_size"], images["seed"])


class _Progress:
    """A bar on a terminal, and a line for each epoch elsewhere."""

    def __init__(self, epochs: int) -> None:
        from tqdm import tqdm

        self.epochs, self.loss, self.started = epochs, 0.0, time.time()
        self.bar = tqdm(desc="training", file=sys.stderr, disable=None, leave=False, unit="step")

    def __call__(self, step: Step) -> None:
        self.bar.total = self.epochs * step.steps
        self.bar.update()
        self.loss = step.loss if step.step == 0 else 0.98 * self.loss + 0.02 * step.loss
        if step.step == step.steps - 1:
            seconds = time.time() - self.started
            click.echo(f"epoch {step.epoch + 1}/{self.epochs}: loss {self.loss:.3f}, {seconds:.0f} s", err=True)
        if step.epoch + 1 == self.epochs and step.step == step.steps - 1:
            self.bar.close()
