"""Fine-tuning a converted model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import NOT_NEGATIVE, POSITIVE, PROBABILITY, TIMESTEPS, Number
from vit2snn.commands.images import check_data, data_options, image_mode, image_source, skipping
from vit2snn.commands.memory import check_run
from vit2snn.commands.output import emit, note
from vit2snn.commands.processes import is_main, launched
from vit2snn.commands.training import SETTINGS, check_training, run_training, training_options
from vit2snn.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vit2snn.convert import SpikingModel
    from vit2snn.data import ImageSource
    from vit2snn.finetune import Distillation, Summary
    from vit2snn.storage.hub import Place

AUGMENTATION = ("scale", "hflip", "aa", "reprob", "mixup", "cutmix", "no_aug")
EXIT_IMAGES = 128  # on which early exits are calibrated
IDENTITY = ("loss", "temperature", "label_smoothing", "timesteps", "teacher", "new_lr", "layer_decay", *AUGMENTATION)


def _weights(context: click.Context, parameter: click.Parameter, value: str) -> dict[str, float]:
    """``labels=0.5,soft=0.5`` as names and weights."""
    weights = {}
    for part in value.split(","):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            raise click.BadParameter(f"{part!r} is not NAME=WEIGHT, as in labels=0.5,soft=0.5") from None
    return weights


def _augmentation_options(command: Any) -> Any:
    """Add timm's augmentations."""
    options = [
        click.option("--scale", nargs=2, default=(0.7, 1.0), show_default=True, type=PROBABILITY, help="Area of crops."),
        click.option("--hflip", default=0.5, show_default=True, type=PROBABILITY, help="Probability of mirroring."),
        click.option("--aa", metavar="POLICY", help="timm's AutoAugment, such as rand-m9-mstd0.5."),
        click.option("--reprob", default=0.0, show_default=True, type=PROBABILITY, help="Probability of erasing a part."),
        click.option("--mixup", default=0.0, show_default=True, type=NOT_NEGATIVE, help="Alpha of mixup."),
        click.option("--cutmix", default=0.0, show_default=True, type=NOT_NEGATIVE, help="Alpha of cutmix."),
        click.option("--no-aug", is_flag=True, help="Neither crop at random nor mirror."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("model", metavar="OUT", type=click.Path(path_type=Path))
@click.option("-o", "--out", metavar="OUT2", type=click.Path(path_type=Path), required=True, help="Folder for the result.")
@click.option(
    "--loss", default="labels=0.5,soft=0.5", show_default=True, callback=_weights, metavar="NAME=WEIGHT,...",
    help="Of labels, soft (class probabilities of the ANN) and features (outputs of its blocks).",
)  # fmt: skip
@click.option("--temperature", default=2.0, show_default=True, type=POSITIVE, help="Of soft.")
@click.option("--label-smoothing", default=0.0, show_default=True, type=Number(0, 1, max_open=True))
@click.option("--teacher", metavar="NAME|FOLDER", help="Another teacher than the ANN that was converted: as for convert.")
@click.option("--timesteps", type=TIMESTEPS, help="T to train, instead of the recipe's.")
@click.option("--new-lr", default=1.0, show_default=True, type=NOT_NEGATIVE, help="Factor for new parameters.")
@click.option("--layer-decay", type=Number(0, 1, min_open=True), help="Factor on the lr from layer to layer.")
@training_options(epochs=5, lr=5e-4)
@_augmentation_options
@data_options
def finetune(model: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Train the converted model in OUT further, with its ANN as the teacher, and write it to OUT2.

    OUT may be on the hub: hf-hub:USER/NAME.
    Several processes: torchrun --nproc-per-node 2 -m vit2snn finetune ... An interrupted training goes on with --resume.

    \b
    vit2snn finetune demo-snn -o demo-tuned
    vit2snn finetune deit-snn --data imagenet --loss soft=1,features=0.5 --epochs 3 -o deit-tuned
    """
    from vit2snn.finetune import close_folder
    from vit2snn.storage.artifact import is_replaceable, read_config
    from vit2snn.storage.hub import find

    check_training(out, options, is_replaceable)
    place = find(model)
    check_data(read_config(place.folder)["vit2snn"]["source"], options)
    with launched(options["device"]) as device:
        summary = _finetune(place, out, options, device)
    if is_main():
        close_folder(out)
    document = {"out": str(out), "updates": summary.updates, "loss": summary.loss, "seconds": round(summary.seconds, 1)}
    loss = "" if summary.loss is None else f", loss {summary.loss:.4g}"
    emit(as_json, document, f"{summary.updates} updates{loss}, {summary.seconds:.0f} s, in {out}")
    data = f" --data {options['data']}" if options["data"] else ""
    note(f"score it with: vit2snn evaluate {out}{data}")


def _finetune(model: Place, out: Path, options: Mapping[str, Any], device: Any) -> Summary:
    """Train and save. The processes of a group do it together."""
    from vit2snn import load
    from vit2snn.convert import Teacher
    from vit2snn.data import training_images
    from vit2snn.measure import exit_table
    from vit2snn.storage.artifact import read_config
    from vit2snn.storage.versions import versions

    snn = load(model.folder).to(device)
    if snn.network.num_classes == 0 and set(options["loss"]) != {"features"}:
        raise click.UsageError("a feature extractor has no classes to learn: compare it with its ANN, --loss features=1")
    if options["timesteps"]:
        snn.recipe = snn.recipe.changed(timesteps=options["timesteps"])
    check_run(snn, options, device, "take fewer timesteps: --timesteps", trains=True)
    original = snn.original()
    objective = _objective(snn, original, options)
    images = _images(snn.network, options)
    batches = training_images(
        snn.network, images, options["batch_size"], options["seed"], options["workers"], _augmentation(options)
    )
    own = model.name if model.shared else str(model.folder.resolve())
    identity = {"model": own, **{name: options[name] for name in IDENTITY}}
    summary = run_training(snn, batches, out, options, identity, objective=objective, lr_scale=_lr_scale(snn, options))
    snn.teacher = Teacher(original)  # what the network no longer computes
    if is_main():
        run = {
            "command": sys.argv, "model": model.name, "data": options["data"],
            **{name: options[name] for name in (*SETTINGS, *IDENTITY)}, "updates": summary.updates, "loss": summary.loss,
            "seconds": round(summary.seconds, 1), "versions": versions(),
        }  # fmt: skip
        snn.exits = exit_table(snn, _plain_images(snn, images, options, device))
        source = read_config(model.folder)["vit2snn"]["source"]
        snn.save(out, source=source, overwrite=options["overwrite"], records={"run.json": run})
    return summary


def _plain_images(snn: SpikingModel, source: ImageSource, options: Mapping[str, Any], device: Any) -> Iterator[Tensor]:
    """Some of the training images as they are scored, batch by batch."""
    from vit2snn.data import batches, prepared

    samples = prepared(snn.network, source, count=EXIT_IMAGES, seed=options["seed"], workers=options["workers"])
    for images, _ in batches(samples, 32):
        yield images.to(device)


def _objective(snn: SpikingModel, original: nn.Module, options: Mapping[str, Any]) -> Distillation:
    from vit2snn.finetune import Distillation

    teacher = original if options["teacher"] is None else _teacher(snn, options["teacher"])
    teacher.to(next(snn.parameters()).device)
    try:
        return Distillation(options["loss"], teacher, options["temperature"], options["label_smoothing"])
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _teacher(snn: SpikingModel, name: str) -> nn.Module:
    """Another ANN, which must take the very inputs of the converted one, and tell the same classes apart."""
    from timm.data import resolve_model_data_config

    from vit2snn.convert import load_model

    teacher = load_model(f"local-dir:{name}" if Path(name).is_dir() else name).requires_grad_(False)
    classes, wanted = int(teacher.num_classes), int(snn.network.num_classes)  # type: ignore[arg-type]
    if classes != wanted:
        raise ModelError(
            f"the teacher {name!r} has {classes} classes, the model {wanted}",
            "take a teacher that was trained on the same data",
        )
    theirs, ours = resolve_model_data_config(teacher), resolve_model_data_config(snn.network)
    for key in ("input_size", "mean", "std"):
        if tuple(theirs[key]) != tuple(ours[key]):
            raise ModelError(
                f"the teacher {name!r} takes images of {key} {tuple(theirs[key])}, the model of {tuple(ours[key])}",
                "take a teacher with the model's preprocessing, or the ANN that was converted (no --teacher)",
            )
    return teacher


def _images(network: nn.Module, options: Mapping[str, Any]) -> ImageSource:
    """The images of --data; from a folder without looking at classes, where the loss does not."""
    from vit2snn.data import unlabelled_images

    folder = Path(options["data"] or "")
    if "labels" in options["loss"] or not options["data"] or not folder.is_dir():
        return image_source(network, {**options, "split": "train"})
    folder = folder / "train" if (folder / "train").is_dir() else folder
    return unlabelled_images(folder, image_mode(network), skipping(options))


def _augmentation(options: Mapping[str, Any]) -> Any:
    from vit2snn.data import Augmentation

    scale, hflip, aa, reprob, mixup, cutmix, off = (options[name] for name in AUGMENTATION)
    return Augmentation(scale, hflip, aa, reprob, mixup, cutmix, off)


def _lr_scale(snn: SpikingModel, options: Mapping[str, Any]) -> Callable[[str], float]:
    """Factors on the learning rate: by layer, and for parameters that the ANN did not have."""
    from vit2snn.finetune import layer_scale

    is_new = getattr(snn, "is_new", lambda name: False)
    by_layer = layer_scale(snn.network, options["layer_decay"]) if options["layer_decay"] else lambda name: 1.0

    def scale(name: str) -> float:
        name = name.removeprefix("network.")
        return by_layer(name) * (options["new_lr"] if is_new(name) else 1.0)

    return scale
