"""The images and recordings of a command: options, sources, and whether the machine can hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import BATCH, SEED, WORKERS
from vit2snn.commands.output import note
from vit2snn.commands.processes import device_option
from vit2snn.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

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


def image_mode(model: nn.Module) -> str:
    """PIL's mode of the images that a model takes.

    Raises:
        ModelError: files have no such images.
    """
    channels = int(getattr(model, "in_chans", 3))
    if channels not in (1, 3):
        raise ModelError(
            f"the model takes images of {channels} channels, and those of files have 1 or 3",
            "give it tensors in Python: vit2snn.evaluate(snn, batches)",
        )
    return "L" if channels == 1 else "RGB"


def image_source(model: nn.Module, images: dict[str, Any]) -> ImageSource:
    """The images of a command: those of --data, or the embedded ones of the demo."""
    from vit2snn.data import array_source, open_images
    from vit2snn.zoo.demo import demo_images

    mode = image_mode(model)
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
    if images["labels"]:
        raise click.UsageError(f"--labels is for images, and {images['data']!r} holds recordings")
    source = open_events(
        images["data"], images["split"], classes=int(model.num_classes),  # type: ignore[arg-type]
        root=images["data_dir"], class_map=images["class_map"], skipped=skipping(images),
    )  # fmt: skip
    for text in source.notes:
        note(f"note: {text}")
    return source


class Skipped:
    """Is told of images that are passed over."""

    def __init__(self) -> None:
        self.found: dict[str, None] = {}  # in the order of their coming, each once

    def __call__(self, error: Exception) -> None:
        """Note an image."""
        self.found[str(error)] = None

    def tell(self) -> None:
        """Name them all."""
        if self.found:
            told = f"note: {len(self.found)} images cannot be read and are passed over"
            click.echo("\n  ".join([told, *self.found]), err=True)


def skipping(images: Mapping[str, Any]) -> Skipped | None:
    """Where --skip-bad is given, what is told of images that are passed over, and names them when the command ends."""
    if not images.get("skip_bad"):
        return None
    skipped = Skipped()
    click.get_current_context().call_on_close(skipped.tell)
    return skipped


def what_was_read(source: ImageSource | EventSource, images: Mapping[str, Any]) -> dict[str, Any]:
    """Of images that have been read, for the record: from where, which split, how many it has, how many were passed over.

    The processes of a group find it together. How many images a stream has, nobody knows.
    """
    from vit2snn.spiking.shards import collected

    skipped = source.skipped.found if isinstance(source.skipped, Skipped) else ()
    return {
        "data": images.get("data") or DEMO,
        "split": source.split or images["split"],
        "images": None if source.labels is None else len(source.labels),
        "skipped": len(set(collected(skipped))),
    }


@dataclass(frozen=True)
class Scored:
    """Batches of images or recordings to score, and the source that they are of."""

    batches: Iterator[tuple[Tensor, Tensor]]
    source: ImageSource | EventSource

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches
