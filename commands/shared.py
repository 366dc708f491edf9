"""What the commands share: options, data, devices, progress and output. Torch and timm are imported when they are needed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import BATCH, CLASSES, SEED, SIDE, TIMESTEPS, WORKERS
from vit2snn.errors import DataError, OutOfMemoryError, Vit2SnnError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vit2snn.convert import Progress, Recipe
    from vit2snn.data import EventSource, ImageSource

DEMO = "demo"
DEVICES = "auto|cpu|cuda|cuda:N"
device_option = click.option(
    "--device", default="auto", show_default=True, metavar=DEVICES, help="auto: CUDA where there is a GPU. No mps."
)


def timestep_list(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """``1,2,4,8`` as a sorted list."""
    if value is None:
        return None
    try:
        steps = sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of timesteps such as 1,2,4,8") from None
    return [int(TIMESTEPS.convert(step, parameter, context)) for step in steps]


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


def data_options(command: Any) -> Any:
    """Add the options that commands with images share."""
    for option in reversed(DATA_OPTIONS):
        command = option(command)
    return command


ANN_OPTIONS = [
    click.option("--checkpoint", type=click.Path(exists=True), help="Weights: .safetensors, or what torch.save wrote."),
    click.option("--ema/--no-ema", default=True, show_default=True, help="Of a checkpoint, averaged weights or the plain."),
    click.option("--num-classes", type=CLASSES, help="Size of the head of --checkpoint, if not the architecture's."),
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
        ModelError: it has no classifier that could be scored, or takes no images that files have.
    """
    from vit2snn.convert import load_model
    from vit2snn.errors import ModelError

    given = {key: options[key] for key in ("checkpoint", "ema", "num_classes", "img_size") if key in options}
    model: Any = load_model(name, **given)
    if model.num_classes < 2:
        raise ModelError(
            f"{name!r} has no classifier (num_classes is {model.num_classes}), and the command line scores classifiers",
            "convert it in Python: vit2snn.to_spiking(model, images=...); or fine-tune a head and give --checkpoint FILE "
            "--num-classes N",
        )
    if getattr(model, "in_chans", 3) not in (1, 3):
        raise ModelError(
            f"{name!r} takes images of {model.in_chans} channels, and those of files have 1 or 3",
            "convert it in Python: vit2snn.to_spiking(model, images=...)",
        )
    return model  # type: ignore[no-any-return]


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


def check_memory(source: ImageSource, count: int, size: Sequence[int]) -> None:
    """Refuse more images than the machine can hold, before they are read. How many a stream has is not known.

    Args:
        source: of the images.
        count: how many are asked for.
        size: ``[C, H, W]`` of an image.

    Raises:
        OutOfMemoryError: it cannot.
    """
    images = 0 if source.labels is None else min(count, len(source.labels))
    needed = 2 * images * math.prod(size) * 4  # one by one, and in one tensor
    fewer = images * memory() // max(needed, 1) // 2
    check_fits(f"{images} images of {'x'.join(map(str, size))}", needed, f"take fewer: --samples {fewer}")


def check_fits(what: str, needed: int, hint: str) -> None:
    """Refuse what needs more bytes than the machine has, however few of them others take.

    Raises:
        OutOfMemoryError: it does.
    """
    if needed > memory():
        raise OutOfMemoryError(
            f"{what} take {needed / 1e9:.0f} GB of memory, and this machine has {memory() / 1e9:.0f} GB", hint
        )


def memory() -> int:
    """Bytes that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def find_recipe(name: str, **changes: Any) -> Recipe:
    """A recipe by name or file, with those of its fields changed that are not None."""
    from vit2snn.convert import Recipe

    return Recipe.find(name).changed(**{field: value for field, value in changes.items() if value is not None})


def find_device(name: str) -> Any:
    """A torch device by name; ``auto`` is CUDA where there is a GPU, and the CPU elsewhere.

    Raises:
        click.UsageError: it is not there, or of a kind on which nothing runs, or has been run.
    """
    import torch

    from vit2snn.spiking import prepare_process

    prepare_process()
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise _unusable(name, "PyTorch knows none of that name") from error
    if device.type == "cpu":
        return device
    if device.type == "mps":
        raise _unusable(name, "it has no double precision, in which what is measured is added up")
    if device.type != "cuda":
        raise _unusable(name, "nothing has ever been run on one")
    index = device.index or 0
    if index >= gpus:
        raise _unusable(name, f"PyTorch sees {gpus} GPUs")
    return torch.device("cuda", index)


def _unusable(name: str, why: str) -> click.UsageError:
    return click.UsageError(f"device {name!r} cannot be used: {why}; choose cpu, cuda or cuda:N")


def is_main() -> bool:
    """Whether this is the process that writes and prints: the only one, or the first that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def launched(name: str) -> Iterator[Any]:
    """Within this context the processes that a launcher (``torchrun``, ``accelerate launch``) has started are a group.

    It gives the device by name; on GPUs, a launched process gets the one of its number, which becomes the current one: groups
    move Python objects through that.

    Raises:
        click.UsageError: the device cannot be used, or not by each of the processes.
    """
    device = find_device(name)
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        _check_shares(name)
    from accelerate import PartialState

    group = PartialState(cpu=device.type == "cpu")
    try:
        yield group.device
        group.wait_for_everyone()
    finally:
        group.destroy_process_group()
        PartialState._reset_state()  # accelerate keeps the first group of a process for good


def _check_shares(name: str) -> None:
    """Refuse GPUs that the processes of a launcher cannot have one each."""
    import torch

    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if ":" in name:
        raise click.UsageError(
            f"--device {name} is one GPU, and the launcher has a GPU for each process: give --device cuda, and choose GPUs by "
            "CUDA_VISIBLE_DEVICES"
        )
    if processes > gpus:
        raise click.UsageError(f"{processes} processes need a GPU each, of {gpus}: start fewer, or give --device cpu")


def wait() -> None:
    """Go on when all processes of the group have come here."""
    from vit2snn.spiking.shards import processes

    if processes() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def own_images(source: ImageSource, count: int | None, seed: int) -> tuple[ImageSource, int | None]:
    """This process's share of a source, and of the number of images to choose from it; other processes' images are not read.

    The images that the processes choose are those that one process chooses of the whole source, unless some are left out.

    Raises:
        DataError: there are fewer images than processes.
    """
    from vit2snn.data import readable
    from vit2snn.spiking.shards import processes, share

    if processes() == 1:
        return source, count
    if source.labels is None:
        return replace(source, stream=lambda: share(source.stream())), own_count(count)
    order = _in_order(source.labels, count, seed)
    if count is not None and source.skipped:  # or each process would take an image of its own for one that cannot be read
        first = dict.fromkeys(readable(source, order, count))
        order = [*first, *(index for index in order if index not in first)]
    return replace(source, order=list(share(order))), own_count(count)


def own_events(source: EventSource, count: int | None, seed: int) -> tuple[EventSource, int | None]:
    """The same for recordings."""
    from vit2snn.data import EventSource
    from vit2snn.spiking.shards import processes, share

    if processes() == 1:
        return source, count
    order = list(share(_in_order(source.labels, count, seed)))[: own_count(count)]
    return EventSource([source.labels[i] for i in order], lambda i: source.read(order[i]), source.sensor_size), None


def _in_order(labels: list[int], count: int | None, seed: int) -> Sequence[int]:
    """All indices in the order in which ``count`` of them are chosen."""
    from vit2snn.data.subset import balanced_order

    return range(len(labels)) if count is None else balanced_order(labels, seed)


def own_count(count: int | None) -> int | None:
    """This process's share of a number of images.

    Raises:
        DataError: it is smaller than the number of processes.
    """
    import torch.distributed as dist

    from vit2snn.spiking.shards import processes

    if count is None or processes() == 1:
        return count
    if count < processes():
        raise DataError(f"{count} images cannot be shared by {processes()} processes", "raise --samples, or start fewer")
    return len(range(dist.get_rank(), count, processes()))


def bar(items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar of the main process on stderr, when that is a terminal."""
    from tqdm import tqdm

    hidden = None if is_main() else True  # None leaves it to the terminal
    return iter(tqdm(items, desc=what, total=total, file=sys.stderr, disable=hidden, leave=False))


class Pass(Sequence[Any]):
    """Batches with a progress bar for each pass over them."""

    def __init__(self, batches: Sequence[Tensor], what: str) -> None:
        self.batches, self.what = batches, what

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        return self.batches[index]

    def __iter__(self) -> Iterator[Tensor]:
        return bar(self.batches, self.what)


@contextmanager
def fit_bar() -> Iterator[Callable[[Progress], None]]:
    """Within this context, a progress bar with the time left that can be handed to `vit2snn.convert.Fitting`."""
    from tqdm import tqdm

    hidden = None if is_main() else True
    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=100, bar_format=shape, file=sys.stderr, disable=hidden, leave=False) as shown:

        def report(progress: Progress) -> None:
            shown.set_description_str(f"fitting {progress.stage}", refresh=False)
            shown.update(100 * progress.done - shown.n)

        yield report


def emit(as_json: bool, document: Any, text: str) -> None:
    """Print a result, as JSON or for reading; processes beside the main one do not.

    Raises:
        Vit2SnnError: whoever reads it has stopped, or there is no room for it.
    """
    if not is_main():
        return
    try:
        click.echo(json.dumps(document) if as_json else text)
    except BrokenPipeError as error:
        raise Vit2SnnError("the result was not printed to its end: what it was sent to has stopped reading") from error
    except OSError as error:
        raise Vit2SnnError(f"the result cannot be printed: {error.strerror or error}") from error


def note(text: str) -> None:
    """Tell something beside the result, on stderr; processes beside the main one do not."""
    if is_main():
        click.echo(text, err=True)
