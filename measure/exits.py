"""Early exit: an image whose readout is sure enough needs no further timesteps. How sure is enough is calibrated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..spiking import SpikingNetwork, evaluating
from ..spiking.shards import collected
from .outputs import check_classifier, output_of


def confidence(logits: Tensor) -> Tensor:
    """The largest class probability, ``[..., classes]`` to ``[...]``."""
    return logits.softmax(-1).amax(-1)


@dataclass(frozen=True)
class ExitTable:
    """What a network was sure of on the calibration images, and whether it stayed with it.

    Attributes:
        sure: `confidence` of the readout, ``[T, N]``.
        stays: whether its class is the one after all timesteps, ``[T, N]``.
    """

    sure: Tensor
    stays: Tensor

    @classmethod
    def of(cls, readout: Tensor) -> ExitTable:
        """From the logits after each timestep, ``[T, N, classes]``."""
        guesses = readout.argmax(-1)
        return cls(confidence(readout), guesses == guesses[-1])

    def over_processes(self) -> ExitTable:
        """With the images of all processes of the group."""
        columns = collected(zip(self.sure.T.tolist(), self.stays.T.tolist(), strict=True))
        sure, stays = zip(*columns, strict=True)
        return ExitTable(torch.tensor(sure).T.contiguous(), torch.tensor(stays).T.contiguous())

    def thresholds(self, wanted: float) -> Tensor:
        """The least confidence at which to stop after each timestep, ``[T]``.

        Of n calibration images that would stop there, at least ``wanted`` (n + 1) keep their class to the end (one more image
        that does not is supposed). It is infinite where there are not enough of them, and 0 after the last timestep.

        Args:
            wanted: share of stopped images that are to keep their class, between 0 and 1.

        Raises:
            ValueError: it is not between 0 and 1.
        """
        if not 0 < wanted < 1:
            raise ValueError(f"an exit confidence lies between 0 and 1, got {wanted}")
        sure, order = self.sure.sort(dim=1, descending=True)
        kept = self.stays.gather(1, order).cumsum(1)
        enough = kept >= wanted * torch.arange(2, sure.shape[1] + 2)
        enough[:, :-1] &= sure[:, :-1] > sure[:, 1:]  # those of one confidence stop together
        last = (enough * torch.arange(1, sure.shape[1] + 1)).amax(1)  # images that may stop, the surest ones
        limits = torch.where(last > 0, sure.gather(1, (last - 1).clamp(min=0)[:, None])[:, 0], torch.inf)
        limits[-1] = 0
        return limits

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return {"sure": self.sure.tolist(), "stays": self.stays.int().tolist()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ExitTable:
        """The inverse of `to_json`.

        Raises:
            ValueError: the fields are no tables of one shape.
        """
        sure, stays = torch.tensor(fields["sure"]), torch.tensor(fields["stays"]).bool()
        if sure.ndim != 2 or sure.shape != stays.shape:
            raise ValueError(f"tables of {tuple(sure.shape)} and {tuple(stays.shape)}, expected two of [T, N]")
        return cls(sure, stays)


def stops(readout: Tensor, limits: Tensor) -> Tensor:
    """The timestep index at which each image stops, ``[B]``: the first at which it is sure enough.

    Args:
        readout: logits after each timestep, ``[T, B, classes]``.
        limits: of `ExitTable.thresholds`, at least T.
    """
    sure = confidence(readout) >= limits[: len(readout), None].to(readout.device)
    sure[-1] = True
    return sure.int().argmax(0)


@torch.no_grad()
def anytime(network: SpikingNetwork, x: Tensor, wanted: float) -> tuple[Tensor, Tensor]:
    """Show each image only until the readout is sure enough; the run ends when all images have stopped.

    Args:
        network: with a calibration of exits.
        x: ``[B, C, H, W]``.
        wanted: share of the images that are to keep, when stopped, the class they would get after all timesteps.

    Returns:
        Logits ``[B, classes]``, and how many timesteps each image took, ``[B]``.

    Raises:
        ModelError: the network has no calibration of exits, or is no classifier.
        ValueError: the share is not between 0 and 1.
    """
    check_classifier(network)
    limits = network.exit_limits(wanted).to(x.device)
    logits, taken = x.new_zeros(0), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for t, (readout,) in enumerate(network.stream(x, len(limits), chunk=1), start=1):
        logits = readout if t == 1 else torch.where(taken[:, None] > 0, logits, readout)
        taken = torch.where((taken == 0) & (confidence(readout) >= limits[t - 1]), t, taken)
        if bool((taken > 0).all()):  # for this the host has to wait in each timestep: it is what saves the later ones
            break
    return logits, taken


@torch.no_grad()
def exit_table(network: SpikingNetwork, batches: Iterable[Tensor]) -> ExitTable | None:
    """How sure the readout is of images ``[B, C, H, W]``, for `SpikingModel.exits`.

    `to_spiking` sets it from the calibration images; for a network that was trained since it has to be made again. None for a
    layer-synchronous network, and for one that is no classifier.
    """
    if network.synchronous or output_of(network) != "classes":
        return None
    with evaluating(network):
        readout = torch.cat([network.readout(images, chunk=1) for images in batches], 1).cpu()
    return ExitTable.of(readout) if readout.ndim == 3 else None
