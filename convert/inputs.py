"""What a conversion is given: a model with weights, and calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..data import digest
from ..errors import ModelError


def check_weights(model: nn.Module) -> None:
    """Refuse weights that nothing can be learned from.

    Raises:
        ModelError: some are not finite; the message names their parameter.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"the weights of {name!r} are not finite (NaN or infinity)", "check the checkpoint")


class Batches:
    """Batches of images that can be iterated over again: a tensor cut up, or batches from which labels are dropped.

    ``digests`` are those of all images, once they have been iterated over.
    """

    def __init__(self, images: Tensor | Iterable[Any], size: int = 32) -> None:
        self.batches = images.split(size) if isinstance(images, Tensor) else images
        self.digests: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Tensor]:
        seen: list[str] = []
        for batch in self.batches:
            images = batch if isinstance(batch, Tensor) else batch[0]
            if not self.digests:
                seen += map(digest, images)
            yield images
        self.digests = self.digests or tuple(seen)
