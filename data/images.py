"""Preprocessed images of a model, with a digest by which an image is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import DataError
from .sources import ImageSource
from .subset import choose


class Sample(NamedTuple):
    """A preprocessed image ``[C, H, W]``, its label, and the digest of the preprocessed pixels."""

    image: Tensor
    label: int
    digest: str


def prepared(
    model: nn.Module, source: ImageSource, *, count: int | None = None, seed: int = 0, exclude: Iterable[str] = (),
    workers: int = 0,
) -> Iterator[Sample]:  # fmt: skip
    """Images as ``model``'s pretrained configuration wants them (size, crop, mean, standard deviation).

    Args:
        model: a timm model, with ``pretrained_cfg``.
        source: where images come from.
        count: how many, class-balanced and seeded; None for all.
        seed: of the choice.
        exclude: digests of images to leave out, such as those a model was calibrated on.
        workers: threads that read ahead; the images and their order are the same.

    Raises:
        DataError: an image cannot be read, when it would come.
    """
    from timm.data import create_transform, resolve_model_data_config

    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    left_out = frozenset(exclude)
    return choose(
        source, lambda image, label: sample_of(transform(image), label), count, seed, lambda s: s.digest in left_out, workers
    )


def sample_of(image: Tensor, label: int) -> Sample:
    """A sample with the digest of its pixels."""
    return Sample(image, label, digest(image))


def digest(image: Tensor) -> str:
    """What a preprocessed image ``[C, H, W]`` is known by: 16 hexadecimal digits of the hash of its pixels in float32.

    An image that was rounded to half precision before is another one.
    """
    return hashlib.sha256(image.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def batches(samples: Iterable[Sample], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``[B, C, H, W]`` and labels ``[B]``, at most ``size`` at a time; in pinned memory where CUDA is in use.

    Raises:
        DataError: there are no samples.
    """
    block: list[Sample] = []
    total = 0
    for sample in samples:
        block.append(sample)
        if len(block) == size:
            yield _stack(block)
            total, block = total + size, []
    if block:
        yield _stack(block)
    elif not total:
        raise DataError("there are no images to use", "all images may be among those that the model was calibrated on")


def _stack(block: list[Sample]) -> tuple[Tensor, Tensor]:
    return pinned(torch.stack([sample.image for sample in block])), torch.tensor([sample.label for sample in block])


def pinned(x: Tensor) -> Tensor:
    """``x`` in memory from which a GPU copies while the program goes on, where CUDA is in use."""
    return x.pin_memory() if torch.cuda.is_initialized() else x
