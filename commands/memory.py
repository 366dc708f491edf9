"""Refusing, before the work begins, what takes more memory than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit2snn.errors import OutOfMemoryError

if TYPE_CHECKING:
    from torch import nn

    from vit2snn.convert import Recipe, SpikingModel
    from vit2snn.data import ImageSource
    from vit2snn.spiking import SpikingNetwork

LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_memory(
    source: ImageSource, count: int, size: Sequence[int], beside: int = 0, most: int | None = None
) -> None:  # fmt: skip
    """Refuse more images than the machine can hold, before they are read. How many a stream has is not known.

    Args:
        source: of the images.
        count: how many are asked for.
        size: ``[C, H, W]`` of an image.
        beside: bytes that are held of each image beside it; or of so many of them at ``most``.

    Raises:
        OutOfMemoryError: it cannot.
    """
    images = 0 if source.labels is None else min(count, len(source.labels))
    needed = images * 2 * math.prod(size) * 4 + min(images, most or images) * beside  # one by one, and in one tensor
    fewer = images * memory() // max(needed, 1) // 2
    check_fits(f"{images} images of {_by(size)}", needed, f"take fewer: --samples {fewer}")


def check_conversion(model: nn.Module, recipe: Recipe, batch: int, device: Any) -> int:
    """Refuse what cannot be converted, or only with more memory than there is; see `vit2snn.tracing.footprint`.

    Calibration runs the spiking network on a batch of images, and computes gradients on a few of them.

    Args:
        model: the ANN.
        recipe: what it is to be converted with.
        batch: images that are computed together.
        device: that does it.

    Returns:
        Bytes that a fit of substitutes holds of each image beside it; 0 where there is none.

    Raises:
        UnsupportedModuleError: a module has no rule.
        NothingConvertedError: the model has no synaptic operation that the recipe converts.
        OutOfMemoryError: there is less memory.
    """
    from timm.data import resolve_model_data_config

    from vit2snn.calibration.sensitivity import AT_ONCE
    from vit2snn.convert import provisional, structure
    from vit2snn.convert.branches import transformer_blocks
    from vit2snn.convert.fitting import held_beside
    from vit2snn.tracing import footprint

    if recipe.structure.undecided:
        transformer_blocks(model)  # refuses one whose branches cannot be exchanged
    size = resolve_model_data_config(model)["input_size"]
    snn: SpikingModel = structure(model, provisional(recipe), size)

    def needed(images: int) -> int:
        run = footprint(snn, (images, *size), recipe.timesteps) or 0
        return max(run, footprint(snn, (min(images, AT_ONCE), *size), 1, trains=True) or 0)

    _check_batch(needed, batch, size, device, "take smaller images: --img-size")
    return held_beside(model, [block.name for block in snn.plan.blocks], size) if recipe.structure.replaces else 0


def check_run(
    network: SpikingNetwork, images: Mapping[str, Any], device: Any, smaller: str, timesteps: int | None = None,
    trains: bool = False,
) -> None:  # fmt: skip
    """Refuse to score or to train a network with more memory than there is; see `vit2snn.tracing.footprint`.

    Args:
        network: a converted one, or one of the zoo.
        images: the options of the data and, where it is trained, of the training.
        device: that does it.
        smaller: what to do where one image is too much.
        timesteps: T; the network's unless given.
        trains: whether it is trained.

    Raises:
        OutOfMemoryError: there is less.
    """
    from timm.data import resolve_model_data_config

    from vit2snn.tracing import footprint

    steps, size = timesteps or network.timesteps or 1, resolve_model_data_config(network.network)["input_size"]
    halves = 2 if images.get("precision", "no") != "no" else 1  # of what autocast computes

    def needed(count: int) -> int:
        return (footprint(network, (count, *size), steps, trains) or 0) // halves

    _check_batch(needed, images["batch_size"], size, device, smaller)


def _check_batch(needed: Callable[[int], int], batch: int, size: Sequence[int], device: Any, smaller: str) -> None:
    """Refuse a batch for which more is ``needed`` than a device has; ``smaller`` is what to do where an image is too much."""
    most, whole = memory(device), needed(batch)
    if whole <= most:
        return
    one = needed(1)
    if one > most:
        check_fits(f"the activations of one image of {_by(size)}", one, smaller, device)
    fewer = 1 + (most - one) * (batch - 1) // (whole - one)
    check_fits(
        f"the activations of {batch} images of {_by(size)}", whole, f"take fewer at a time: --batch-size {fewer}", device
    )


def check_fits(what: str, needed: int, hint: str, device: Any = None) -> None:
    """Refuse what needs more bytes than the machine has, however few of them others take.

    Args:
        what: takes it; several things.
        needed: bytes.
        hint: what to do.
        device: of torch, whose memory it takes; the machine's unless it is a GPU.

    Raises:
        OutOfMemoryError: there are fewer.
    """
    most = memory(device)
    if needed > most:
        owner = device if _is_gpu(device) else "this machine"
        raise OutOfMemoryError(f"{what} take {needed / 1e9:.3g} GB of memory, and {owner} has {most / 1e9:.3g} GB", hint)


def memory(device: Any = None) -> int:
    """Bytes that a GPU has; or the machine, or as many of its as the control group of this process may take."""
    if _is_gpu(device):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = LIMIT.read_text(encoding="ascii").strip() if LIMIT.is_file() else "max"
    return machine if limit == "max" else min(machine, int(limit))


def _is_gpu(device: Any) -> bool:
    return device is not None and device.type == "cuda"


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
