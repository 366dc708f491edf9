"""Training a zoo model from scratch, and what all commands that train share."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import (
    BATCH,
    CLASSES,
    IMAGES,
    NOT_NEGATIVE,
    POSITIVE,
    ROUNDS,
    SIDE,
    UPDATES,
    Number,
)
from vit2snn.commands.evaluation import scored_batches
from vit2snn.commands.images import data_options, event_source, image_source
from vit2snn.commands.memory import check_fits, check_run
from vit2snn.commands.output import bar, emit
from vit2snn.commands.processes import is_main, launched
from vit2snn.errors import ModelError

if TYPE_CHECKING:
    from vit2snn.finetune import Step, Summary
    from vit2snn.measure import Evaluation

LARGEST = 2**16  # number among the arguments of a model: of a layer so wide there is no other
SETTINGS = (
    "epochs", "max_steps", "lr", "opt", "sched", "warmup_epochs", "weight_decay", "accumulate", "precision", "ema", "seed",
)  # fmt: skip


def training_options(epochs: int, lr: float) -> Callable[[Any], Any]:
    """Add the options of the training loop (see `vit2snn.finetune.Settings` and `Workspace`), with these defaults."""
    share = Number(0, 1, min_open=True, max_open=True)
    schedules, precisions = click.Choice(["cosine", "tanh", "poly", "wsd", "constant"]), click.Choice(["no", "bf16", "fp16"])
    options = [
        click.option("--epochs", default=epochs, show_default=True, type=ROUNDS),
        click.option("--max-steps", type=UPDATES, metavar="N", help="Updates to make, in place of --epochs."),
        click.option("--lr", default=lr, show_default=True, type=POSITIVE, help="Peak learning rate."),
        click.option("--opt", default="adamw", show_default=True, help="Optimizer, by its name in timm."),
        click.option("--sched", default="cosine", show_default=True, type=schedules, help="Schedule of the learning rate."),
        click.option("--warmup-epochs", default=1.0, show_default=True, type=NOT_NEGATIVE),
        click.option("--weight-decay", default=0.05, show_default=True, type=NOT_NEGATIVE),
        click.option("--accumulate", default=1, show_default=True, type=BATCH, help="Batches to an update."),
        click.option("--precision", default="no", show_default=True, type=precisions, help="Mixed precision."),
        click.option("--ema", type=share, metavar="DECAY", help="Give the moving average of the weights."),
        click.option("--checkpoint-every", type=UPDATES, metavar="N", help="Updates; an epoch unless given."),
        click.option("--resume", is_flag=True, help="Continue a training that was interrupted."),
        click.option("--overwrite", is_flag=True, help="Replace an earlier model at the output, and its training."),
        click.option("--tensorboard", is_flag=True, help="Also write the metrics for TensorBoard."),
    ]

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def check_training(out: Path, options: Mapping[str, Any], replaceable: Any) -> None:
    """Refuse outputs that must not be written, before anything is read. Processes beside the main one have no output."""
    from vit2snn.files import check_output
    from vit2snn.finetune import check_folder

    if is_main():
        check_output(out, options["overwrite"], replaceable)
        check_folder(out, options["resume"], options["overwrite"])


def run_training(
    model: Any, batches: Any, out: Path, options: Mapping[str, Any], identity: Mapping[str, Any], **more: Any
) -> Summary:
    """Train ``model`` with the settings among ``options``; checkpoints and metrics go beside ``out``."""
    from vit2snn.finetune import Settings, Workspace, drop_folder, folder_of, open_folder, train
    from vit2snn.spiking.shards import processes

    # As the same images are seen by two processes with half the batch size, a training may go on with other processes.
    given = {**identity, "data": options["data"], "batch_size of all processes": options["batch_size"] * processes()}
    folder = open_folder(out, options["resume"]) if is_main() else folder_of(out)
    settings = Settings(**{name: options[name] for name in SETTINGS})
    workspace = Workspace(folder, options["checkpoint_every"], options["resume"], given, options["tensorboard"])
    try:
        return train(model, batches, settings, workspace=workspace, report=Progress(), **more)
    except BaseException:
        if is_main():
            drop_folder(out)
        raise


class Progress:
    """A bar on a terminal, and a line for each epoch elsewhere, with the time that is left."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self.loss, self.started, self.done = 0.0, time.time(), 0
        self.bar = tqdm(desc="training", file=sys.stderr, disable=None, leave=False, unit="step")

    def __call__(self, step: Step) -> None:
        """Show an update."""
        if not self.done:
            self.bar.total, self.bar.initial = step.updates, step.update
        self.bar.n = step.update
        self.bar.update()
        self.done += 1
        self.loss = step.loss if self.done == 1 or step.step == 0 else 0.98 * self.loss + 0.02 * step.loss
        last = step.update + 1 == step.updates
        if step.step == step.steps - 1 or last:
            seconds = time.time() - self.started
            left = seconds / self.done * (step.updates - step.update - 1)
            epochs = -(-step.updates // step.steps)
            click.echo(f"epoch {step.epoch + 1}/{epochs}: loss {self.loss:.3f}, {seconds:.0f} s, {left:.0f} s left", err=True)
        if last:
            self.bar.close()


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
@click.option("--img-size", type=SIDE, help="Height and width to resize to, if not the model's.")
@click.option("--num-classes", type=CLASSES, help="Size of the head, if not the model's.")
@click.option("--samples", type=IMAGES, help="Images to score at the end; all unless given.")
@click.option("--split", default="validation", show_default=True, help="Split of the data to score.")
@training_options(epochs=10, lr=2e-3)
@data_options
def train(
    model: str, out: Path, arguments: dict[str, str], img_size: int | None, num_classes: int | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Train the zoo model MODEL from scratch, score it at every timestep, and write it to OUT.

    MODEL is a name of `vit2snn zoo list`, or a folder that `vit2snn zoo create` wrote. Without --data, it learns the images of
    the demo. Event recordings are read as frames. An interrupted training goes on with --resume.

    \b
    vit2snn train qkformer_4_384_cifar10 -a dims=[32,64,128] --data cifar10 -o qk
    """
    from vit2snn.finetune import close_folder
    from vit2snn.measure.text import curve_table
    from vit2snn.storage import is_replaceable

    check_training(out, options, is_replaceable)
    identity = {"model": model, "arguments": arguments, "img_size": img_size, "num_classes": num_classes}
    with launched(options["device"]) as device:
        parameters, seconds, scored = _train(out, identity, options, device)
    if is_main():
        close_folder(out)
    document = {"out": str(out), "parameters": parameters, "seconds": seconds, **scored.to_json()}
    emit(as_json, document, f"{parameters:,} parameters, {seconds:.0f} s\n{curve_table(scored)}")


def _train(out: Path, identity: Mapping[str, Any], options: dict[str, Any], device: Any) -> tuple[int, float, Evaluation]:
    """Make, train, score, save; parameters, seconds, and the curve. The processes of a group do it together."""
    import torch

    from vit2snn.measure import evaluate
    from vit2snn.storage import save_model
    from vit2snn.storage.versions import versions

    started = time.time()
    torch.manual_seed(options["seed"])
    network = _create(**identity).to(device)
    check_run(network, options, device, "take smaller images, or fewer timesteps: --img-size, -a timesteps=1", trains=True)
    run_training(network, _training_batches(network, options), out, options, identity)
    scored = evaluate(network, bar(scored_batches(network, network.timesteps, options), "scoring"))
    seconds = round(time.time() - started, 1)
    if is_main():
        run = {
            "command": sys.argv, "data": options["data"], **{name: options[name] for name in SETTINGS},
            "versions": versions(), "seconds": seconds,
        }  # fmt: skip
        records = {"run.json": run, "evaluation.json": scored.to_json()}
        save_model(network, out, overwrite=options["overwrite"], records=records)
    return sum(p.numel() for p in network.parameters()), seconds, scored


def _create(model: str, arguments: dict[str, str], img_size: int | None, num_classes: int | None) -> Any:
    """The untrained model."""
    import inspect

    import timm
    import torch

    from vit2snn.storage import is_model_folder
    from vit2snn.zoo import VARIANTS

    if is_model_folder(Path(model)):
        return _created(Path(model), arguments, img_size, num_classes)
    if model not in VARIANTS:
        raise ModelError(f"the zoo has no model {model!r}", "vit2snn zoo list shows all")
    variant = VARIANTS[model]
    known = inspect.signature(variant.architecture).parameters
    for argument in arguments:
        if argument not in known:
            raise ModelError(f"{model} has no argument {argument!r}", f"choose of {', '.join(known)}")
    # Text stays text where the model takes text: a JSON reader would make a number of pools=0011.
    textual = {key for key, parameter in known.items() if str(parameter.annotation).startswith("str")}
    typed = {key: text if key in textual else _value(key, text) for key, text in arguments.items()}
    channels = variant.cfg["input_size"][0]
    overlay = {"input_size": (channels, img_size, img_size)} if img_size else {}
    make = partial(timm.create_model, model, pretrained_cfg_overlay=overlay, num_classes=num_classes, **typed)
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in make().parameters())
    except Exception as error:  # of arguments that contradict each other, layers complain in all ways
        raise ModelError(f"{model} cannot be made with {typed}: {error}", "see its class in vit2snn.zoo") from error
    check_fits(f"{parameters} parameters, their gradients and moments", 16 * parameters, "make the model smaller")
    return make()


def _created(folder: Path, given: dict[str, str], img_size: int | None, num_classes: int | None) -> Any:
    """The model in a folder, as untrained as it is there."""
    from vit2snn.convert import load_model

    if given:
        raise ModelError(f"the model in {str(folder)!r} has its arguments, got {', '.join(given)}", "leave -a out")
    model: Any = load_model(f"local-dir:{folder}", num_classes=num_classes, new_head=True)
    if img_size:
        model.pretrained_cfg = model.pretrained_cfg | {"input_size": (model.in_chans, img_size, img_size)}
    return model


def _value(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise click.UsageError(f"{name}={text} is not a number, a truth value or a list as in JSON") from None
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, (int, float)) and not abs(number) <= LARGEST:
            raise click.UsageError(f"{name}={text} is out of bounds: expected at most {LARGEST}")
    return value


def _training_batches(network: Any, images: dict[str, Any]) -> Any:
    from vit2snn.data import training_events, training_images

    trained = images | {"split": "train"}
    size = network.pretrained_cfg["input_size"][1:]
    events = event_source(network, trained)
    if events is not None:
        return training_events(events, network.timesteps, size, images["batch_size"], images["seed"], images["workers"])
    return training_images(network, image_source(network, trained), images["batch_size"], images["seed"], images["workers"])
