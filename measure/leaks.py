"""Whether images of a batch leak into each other: the readout of one alone, beside that of the same one among others."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import DataError, ModelError
from ..spiking import SpikingNetwork, evaluating

ROUNDING = 1e-9
"""What float64 may differ by if a batch is summed in another order, as a share of what images differ by."""

Verdict = Literal["none", "found", "untold"]


@dataclass(frozen=True)
class Leak:
    """How far the readout of an image depends on its batch mates: the largest difference of a logit at each timestep.

    Attributes:
        ahead: between the image alone and the same one ahead of a second one, in a batch of two.
        behind: the same behind a third one.
        images: between the image and the other two, each alone. Where it is 0, there is nothing yet that could leak.
    """

    ahead: tuple[float, ...]
    behind: tuple[float, ...]
    images: tuple[float, ...]

    @property
    def largest(self) -> float:
        """Of all timesteps and both places."""
        return max(self.ahead + self.behind)

    @property
    def verdict(self) -> Verdict:
        """Whether there is a leak; ``untold`` where images have the same readout, as of a silent network."""
        if self.largest > ROUNDING * max(self.images):
            return "found"
        return "none" if max(self.images) else "untold"

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"verdict": self.verdict}


@torch.no_grad()
def leak(network: SpikingNetwork, images: Tensor, timesteps: int | None = None) -> Leak:
    """Run the first image alone, ahead of the second and behind the third, in evaluation mode and in float64.

    In float32 a sum in another order may turn a spike, which looks like a small leak.

    Args:
        network: a network of the zoo, or a converted one; it is not changed.
        images: three of them, ``[3, C, H, W]``, or frames ``[T, 3, C, H, W]``.
        timesteps: T; the network's unless given.

    Raises:
        DataError: there are fewer than three images.
        ModelError: logits are not finite.
    """
    batch = images.ndim - 4
    if images.shape[batch] < 3:
        raise DataError(f"a leak is looked for with three images, got {images.shape[batch]}", "give three that differ")
    network = copy.deepcopy(network)
    network.network.double()

    def of(*chosen: int) -> Tensor:
        frames = images.double().index_select(batch, torch.tensor(chosen, device=images.device))
        logits = network.readout(frames, timesteps)
        if not logits.isfinite().all():
            raise ModelError("logits of some images are not finite", "check the weights for NaN and infinity")
        return logits

    with evaluating(network):
        alone, second, third = of(0), of(1), of(2)
        ahead, behind = of(0, 1)[:, :1], of(2, 0)[:, 1:]
    return Leak(
        ahead=_largest(ahead - alone), behind=_largest(behind - alone), images=_largest(torch.cat([second, third], 1) - alone)
    )


def _largest(differences: Tensor) -> tuple[float, ...]:
    """The largest magnitude at each timestep, of ``[T, B, classes]``."""
    return tuple(differences.abs().amax((1, 2)).tolist())
