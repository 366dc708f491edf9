"""What a command converts, and how: options of the ANN, and recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import HEAD, SIDE

if TYPE_CHECKING:
    from torch import nn

    from vit2snn.convert import Recipe

ANN_OPTIONS = [
    click.option("--checkpoint", type=click.Path(exists=True), help="Weights: .safetensors, or what torch.save wrote."),
    click.option("--ema/--no-ema", default=True, show_default=True, help="Of a checkpoint, averaged weights or the plain."),
    click.option("--num-classes", type=HEAD, help="Of the head of --checkpoint, if not the architecture's; 0: features."),
    click.option("--classifier", type=click.Path(exists=True), help="Text embeddings of the classes, for a tower of CLIP."),
    click.option("--img-size", type=SIDE, help="Side of the images, if not the model's own."),
]


def ann_options(command: Any) -> Any:
    """Add the options that tell which ANN is meant, beside its name; see `load_ann`."""
    for option in reversed(ANN_OPTIONS):
        command = option(command)
    return command


def load_ann(name: str, options: dict[str, Any]) -> nn.Module:
    """The ANN that a name and the options of `ann_options` mean.

    Raises:
        ModelError: it gives a number, and data has classes; or it takes no images that files have; or texts do not fit.
        CheckpointError: a file of weights or of text embeddings cannot be read.
    """
    from vit2snn.convert import load_model, read_embeddings, zero_shot
    from vit2snn.errors import ModelError

    given = {key: options[key] for key in ("checkpoint", "ema", "num_classes", "img_size") if key in options}
    model: Any = load_model(name, **given)
    if options.get("classifier"):
        model = zero_shot(model, read_embeddings(Path(options["classifier"])))
    if model.num_classes == 1:
        raise ModelError(
            f"{name!r} gives one number (num_classes is 1), and the data of the command line has classes, not numbers",
            "convert and score it in Python: vit2snn.to_spiking(model, images=...), vit2snn.evaluate(snn, batches)",
        )
    if getattr(model, "in_chans", 3) not in (1, 3):
        raise ModelError(
            f"{name!r} takes images of {model.in_chans} channels, and those of files have 1 or 3",
            "convert it in Python: vit2snn.to_spiking(model, images=...)",
        )
    return model  # type: ignore[no-any-return]


def check_scored(name: str, model: nn.Module) -> None:
    """Refuse a model whose output would not be scored, before images are read.

    Args:
        name: to call it.
        model: of which is known that it runs on the ``meta`` device.

    Raises:
        ModelError: it gives no list of numbers for an image, as where its tokens are not pooled.
    """
    import torch
    from timm.data import resolve_model_data_config

    from vit2snn.errors import ModelError
    from vit2snn.tracing.signals import on_meta

    with torch.no_grad():
        output = on_meta(model)(torch.empty(1, *resolve_model_data_config(model)["input_size"], device="meta"))
    if output.ndim != 2:
        raise ModelError(
            f"{name!r} gives {list(output.shape[1:])} numbers for an image, and a list of classes or features is scored",
            "take a model that pools its tokens, or convert this one in Python: vit2snn.to_spiking(model, images=...)",
        )


def find_recipe(name: str, **changes: Any) -> Recipe:
    """A recipe by name or file, with those of its fields changed that are not None."""
    from vit2snn.convert import Recipe

    return Recipe.find(name).changed(**{field: value for field, value in changes.items() if value is not None})
