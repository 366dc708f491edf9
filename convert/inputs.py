"""What a conversion is given: a model with weights, calibration images, and a seed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..data import TrainingLoader, digest
from ..errors import DataError, ModelError
from ..measure.batches import IMAGES, as_tensor, check_preprocessed
from ..spiking import shards
from .precision import at_least_float32


def checked(model: nn.Module) -> nn.Module:
    """The model, without the wrapper of ``torch.compile``.

    Raises:
        ModelError: it has no weights to learn from.
    """
    if isinstance(model, torch._dynamo.OptimizedModule):
        model = model._orig_mod
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model to convert is a torch.nn.Module, got {type(model).__name__}", "pass a model of timm")
    if next(model.parameters(), None) is None:
        raise ModelError(f"{type(model).__name__} has no parameters", "pass a model with weights, such as one of timm")
    check_weights(model)
    return model


def check_weights(model: nn.Module) -> None:
    """Refuse weights that nothing can be learned from.

    Raises:
        ModelError: some are missing or not finite; the message names their parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"the weights of {name!r} are on the meta device, which has no values", "load the weights first")
        if not torch.isfinite(parameter).all():
            raise ModelError(f"the weights of {name!r} are not finite (NaN or infinity)", "check the checkpoint")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within this context random numbers depend on the seed alone, and afterwards they go on as if nothing had happened."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


FEW = 32
"""Calibration images from which thresholds suit others nearly as well as from hundreds."""

SAME, ALIKE = 1e-10, 1e-2
"""Shares of the variance of images that are between them: rounding, and that of pictures of one scene."""

logger = logging.getLogger("vit2snn")


class Batches:
    """Batches of calibration images that can be iterated over again.

    Args:
        images: ``[N, C, H, W]``, a tensor or an array; or batches of images, of images and labels (which are dropped), or
            dictionaries with a key of `vit2snn.measure.batches.IMAGES`.
        like: images get the device and type of this tensor.
        size: of the batches into which a tensor is cut up.

    Attributes:
        in_memory: whether all images are there at once: in a tensor, a list, or another sequence.
        digests: of all images, once they have been iterated over. They must be the same in every pass, in any order.

    Raises:
        DataError: they can be iterated over only once, or there are none; at the end of the first pass, they do not differ.
    """

    def __init__(self, images: Any, like: Tensor, size: int = 32) -> None:
        if not isinstance(images, Iterable) or isinstance(images, (Iterator, Mapping, str)):
            raise DataError(
                f"calibration needs images that can be iterated over several times, got {type(images).__name__}",
                "pass a tensor, a list of batches or a DataLoader",
            )
        images = as_tensor(images)
        self.batches = images.split(size) if isinstance(images, Tensor) and images.ndim else images
        self.in_memory = isinstance(images, (Tensor, Sequence))
        self.like = like
        self.digests: tuple[str, ...] = ()

    def first(self) -> Tensor:
        """The first batch.

        Raises:
            DataError: there is none.
        """
        first = next(iter(self), None)
        if first is None:
            raise DataError("there are no calibration images", "pass at least one batch of images")
        return first

    def some(self, count: int) -> list[Tensor]:
        """The first batches: as few as have ``count`` images, or all that there are."""
        taken: list[Tensor] = []
        for images in self:
            taken.append(images)
            if sum(map(len, taken)) >= count:
                break
        return taken

    def __iter__(self) -> Iterator[Tensor]:
        """The images of each batch.

        Raises:
            DataError: a batch has none, or they are others than in the pass before.
        """
        seen: list[str] = []
        spread = None if self.digests else _Spread()
        for batch in self.batches:
            images = images_of(batch)
            if len(images):
                seen += map(digest, images)
                if spread:
                    spread.add(images)
                yield images.detach().to(self.like)
        if spread:
            spread.check()
        if self.digests and set(seen) != set(self.digests):
            raise DataError(
                "the calibration images are others in every pass: they are augmented, or chosen anew",
                "pass a loader without augmentation and drop_last, or a list: list(loader)",
            )
        self.digests = self.digests or tuple(seen)


class _Spread:
    """How far images differ from each other, over all processes.

    A neuron learns from them what its input may be: from one image, or equal ones, that its input is always the same.
    """

    def __init__(self) -> None:
        self.images, self.total, self.squares = torch.zeros((), dtype=torch.int64), torch.zeros(()), torch.zeros(())

    def add(self, images: Tensor) -> None:
        """Take in a batch."""
        x = images.detach().double()
        self.images += len(x)
        self.total, self.squares = self.total.to(x.device) + x.sum(0), self.squares.to(x.device) + x.square().sum()

    def check(self) -> None:
        """Warn where they are few or much alike.

        Raises:
            DataError: there is one, or they are all the same.
        """
        if not int(self.images):
            return
        count, total, squares = int(shards.total(self.images)), shards.total(self.total), shards.total(self.squares)
        power = squares / count / total.numel()
        at_each, overall = power - (total / count).square().mean(), power - (total.mean() / count).square()
        if not torch.isfinite(power):
            return  # calibration tells where that comes from
        share = float(at_each / overall) if overall > SAME * power else 0.0
        if count == 1 or share <= SAME:
            which = "there is 1 calibration image" if count == 1 else f"the {count} calibration images are the same"
            raise DataError(
                f"{which}, from which no neuron can learn how its input changes", f"give {FEW} or more different ones"
            )
        if count < FEW and shards.is_main():
            logger.warning("%d calibration images are few: thresholds may not suit others (%d or more do well)", count, FEW)
        elif share < ALIKE and shards.is_main():
            logger.warning(
                "the calibration images hardly differ (%.2g of their variance): thresholds may not suit others", share
            )


class OwnItems(TrainingLoader):
    """Pairs that this process alone has, to be trained on, wherever they are; other processes have others, equally many."""

    pins = False

    def share(self, process: int, processes: int) -> None:
        """Keep them all."""


class _Unlabelled:
    """Batches of images with labels that nobody looks at."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.count = sum(1 for _ in batches)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images in map(at_least_float32, self.batches):
            yield images, torch.zeros(len(images), dtype=torch.int64)


def unlabelled(images: Tensor | Batches, size: int, seed: int) -> OwnItems | _Unlabelled:
    """Images to train on without labels: those of a tensor are shuffled, ``size`` in a batch; batches stay as they are."""
    if isinstance(images, Batches):
        return _Unlabelled(images)
    return OwnItems(lambda index: (images[index], 0), len(images), size, seed)


def images_of(batch: Any) -> Tensor:
    """The images ``[B, C, H, W]`` of a batch of images, of images and labels, or of a dictionary.

    Raises:
        DataError: there are none, or they are no preprocessed images.
    """
    if isinstance(batch, Mapping):
        named = [batch[key] for key in IMAGES if key in batch]
        if not named:
            raise DataError(f"a batch has the keys {', '.join(map(repr, batch))}", f"name the images {IMAGES[0]!r}")
        batch = named[0]
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        batch = batch[0]
    batch = as_tensor(batch)
    if not isinstance(batch, Tensor):
        raise DataError(f"images are tensors or arrays, got {type(batch).__name__}", "convert them with torch.as_tensor")
    check_preprocessed(batch)
    return batch
