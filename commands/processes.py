"""The device of a command, and the processes that a launcher has started: what each of them does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from vit2snn.errors import DataError

if TYPE_CHECKING:
    from vit2snn.data import EventSource, ImageSource

DEVICES = "auto|cpu|cuda|cuda:N"


device_option = click.option(
    "--device", default="auto", show_default=True, metavar=DEVICES, help="auto: CUDA where there is a GPU. No mps."
)


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

    The images that the processes choose are those that one process chooses of the whole source, unless some are left out or,
    of a stream, cannot be read.

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
    from vit2snn.spiking.shards import processes, share

    if processes() == 1:
        return source, count
    order = list(share(_in_order(source.labels, count, seed)))[: own_count(count)]
    return source.subset(order), None


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
