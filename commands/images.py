"""The images and recordings of a command: options, sources, and whether the machine can hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import BATCH, SEED, WORKERS
from vit2snn.commands.output import note
from vit2snn.commands.processes import device_option

if TYPE_CHECKING:
    from torch import nn

    from vit2snn.data import EventSource, ImageSource

DATA_OPTIONS = [
    click.option("--data", metavar="DATA", help="Image folder or tar file, or hfds/NAME, wds/NAME, torch/NAME as in timm."),
    click.option("--data-dir", metavar="DIR", help="Where a data set given as PREFIX/NAME lies."),
    click.option("--class-map", type=click.Path(exists=True, dir_okay=False), help="The model's classes, one a line."),
    click.option("--labels", type=click.Path(exists=True, dir_okay=False), help="Lines PATH,CLASS, instead of class folders."),
    click.option("--skip-bad", is_flag=True, help="Pass over images that cannot be read, and name them."),
    click.option("--seed", default=0, show_default=True, type=SEED, help="Of the choice of images."),
    click.option("--batch-size", default=16, show_default=True, type=BATCH),
    click.option("--workers", default=2, show_default=True, type=WORKERS, help="That read images ahead."),
    device_option,
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
]


DEMO = "demo"


def data_options(command: Any) -> Any:
    """Add the options that commands with images share."""
    for option in reversed(DATA_OPTIONS):
        command = option(command)
    return command


def check_data(name: str, images: dict[str, Any]) -> None:
    """Only the demo model brings its images."""
    if name != DEMO and not images.get("data"):
        raise click.UsageError("give the images with --data DATA (only the demo model brings its own)")


def image_source(model: nn.Module, images: dict[str, Any]) -> ImageSource:
    """The images of a command: those of --data, or the embedded ones of the demo."""
    from vit2snn.data import array_source, open_images
    from vit2snn.zoo.demo import demo_images

    mode = "L" if int(getattr(model, "in_chans", 3)) == 1 else "RGB"
    if images.get("data"):
        source = open_images(
            images["data"], images["split"], classes=int(model.num_classes), mode=mode,  # type: ignore[arg-type]
            root=images["data_dir"], class_map=images["class_map"], labels=images["labels"], skipped=skipping(images),
        )  # fmt: skip
        for text in source.notes:
            note(f"note: {text}")
        return source
    return array_source(*demo_images("train" if images["split"] == "train" else "val"), mode)


def event_source(model: nn.Module, images: dict[str, Any]) -> EventSource | None:
    """The recordings of --data, if it names recordings."""
    from vit2snn.data import is_events, open_events

    if not images.get("data") or not is_events(images["data"]):
        return None
    for option in ("class_map", "labels"):
        if images[option]:
            raise click.UsageError(f"--{option.replace('_', '-')} is for images, and {images['data']!r} holds recordings")
    return open_events(
        images["data"], images["split"], classes=int(model.num_classes),  # type: ignore[arg-type]
        root=images["data_dir"], skipped=skipping(images),
    )  # fmt: skip


def skipping(images: dict[str, Any]) -> Callable[[Exception], None] | None:
    """Where --skip-bad is given, what is told of images that are passed over, and names them when the command ends."""
    if not images["skip_bad"]:
        return None
    found: dict[str, None] = {}  # in the order of their coming, each once

    def tell() -> None:
        if found:
            click.echo("\n  ".join([f"note: {len(found)} images cannot be read and are passed over", *found]), err=True)

    click.get_current_context().call_on_close(tell)
    return lambda error: found.setdefault(str(error))
