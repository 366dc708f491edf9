"""Fitting substitutes to the ANN that they stand in for, on images without labels: front to back, then as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..data import digest
from ..errors import DataError
from ..finetune import Precision, Step, Workspace
from ..finetune.checkpoint import BRANCHES, load_checkpoint, save_checkpoint
from ..measure.batches import set_digest
from ..spiking import shards
from .fields import to_fields
from .fit_branches import BATCH, HELD, STEPS, Effort, Place, fit_branches, places
from .fit_network import fit_network
from .inputs import Batches
from .precision import at_least_float32, full_precision, without_half
from .structures import Structure

BRANCH_COST = 0.75
"""The work of an update of all branches one by one, over that of the whole network and its ANN together."""
EVERY = 50  # updates of the whole network between checkpoints


@dataclass(frozen=True)
class Progress:
    """How far a fit has come.

    Attributes:
        stage: what is being fitted: a branch such as ``blocks.3.attn``, or the ``network``.
        done: share of the work that is done, 0..1; the stages are weighted by what their updates cost.
    """

    stage: str
    done: float


@dataclass(frozen=True)
class Fitting:
    """How a fit is carried out; what it gives does not depend on it, but for rounding.

    Args:
        precision: of the forward passes: float32 (``no``) or mixed with ``bf16`` or ``fp16`` (CUDA only), which saves time
            where a processor has it.
        folder: where checkpoints and metrics go while the fit is unfinished (see `vit2snn.finetune.open_folder`); None for
            none.
        resume: go on from the checkpoints in ``folder``, if there are any.
        report: called after each update, in the main process.
    """

    precision: Precision = "no"
    folder: Path | None = None
    resume: bool = False
    report: Callable[[Progress], None] = field(default=lambda progress: None)


def fit(
    network: VisionTransformer, ann: VisionTransformer, structure: Structure, batches: Batches, seed: int, fitting: Fitting
) -> None:
    """Fit the substitutes in ``network`` as far as the structure's ``refit`` asks for, in place.

    In memory are the images that are given as one tensor, or `HELD` others, and the streams of `HELD`.

    Args:
        network: with substitutes (see `vit2snn.convert.substitution.substitute`), in evaluation mode.
        ann: what it was made of, in evaluation mode.
        structure: ``refit`` and ``passes``.
        batches: images ``[B, C, H, W]``.
        seed: of their order and their views.
        fitting: see `Fitting`.

    Raises:
        DataError: there are fewer images than a batch of the fit has.
        ArtifactError: a checkpoint cannot be read or written, or is one of another fit.
    """
    assert structure.refit is not None
    ann = full_precision(ann)
    images = _held(batches)
    if structure.refit in ("blocks", "network") and len(images) < BATCH:
        raise DataError(
            f"{len(images)} images are too few to fit substitutes: a batch has {BATCH}, and accuracy takes a thousand",
            "give more images (--samples), or choose structure.refit 'ridge' or 'none'",
        )
    whole = len(images) == len(batches.digests)
    steps = structure.passes * (len(images) // BATCH if whole else sum(1 for _ in batches))
    work = _Work(places(network, ann), structure.refit, steps, fitting.report)
    identity = {
        "structure": to_fields(structure), "seed": seed, "precision": fitting.precision,
        "images": set_digest(batches.digests), "ann": digest(torch.stack([p.float().norm() for p in ann.parameters()])),
    }  # fmt: skip
    with without_half(network):
        saved = _Saved(network, fitting, identity)
        effort = Effort(structure.refit, seed, fitting.precision, saved.done(), work.branch, saved.keep)
        fit_branches(network, ann, images[:HELD], effort)
        if structure.refit == "network":
            shown = images if whole else batches
            fit_network(network, ann, shown, structure.passes, seed, fitting.precision, saved.workspace(), work.network)


def _held(batches: Batches) -> Tensor:
    """The images in memory: all of those that are there anyway, or as many as are held."""
    taken: list[Tensor] = []
    for images in map(at_least_float32, batches):
        if batches.in_memory or sum(map(len, taken)) < HELD:
            taken.append(images)
    return torch.cat(taken)


class _Work:
    """What there is to do, in updates of the whole network, and how much of it is done."""

    def __init__(self, found: Sequence[Place], refit: str, steps: int, report: Callable[[Progress], None]) -> None:
        self.report = report
        self.each = BRANCH_COST / len(found)
        self.branches = [place.name for place in found if place.is_new]
        self.first = self.each * STEPS * len(self.branches) if refit in ("blocks", "network") else 0.0
        self.total = self.first + (steps if refit == "network" else 0)

    def branch(self, name: str, step: Step) -> None:
        """An update of one branch."""
        done = self.branches.index(name) * STEPS + step.update + 1
        self.report(Progress(name, self.each * done / self.total))

    def network(self, step: Step) -> None:
        """An update of the whole network."""
        self.report(Progress("network", (self.first + step.update + 1) / self.total))


class _Saved:
    """The checkpoints of an unfinished fit, if it has a folder for them."""

    def __init__(self, network: nn.Module, fitting: Fitting, identity: Mapping[str, Any]) -> None:
        self.network, self.fitting, self.identity = network, fitting, identity

    def done(self) -> int:
        """The number of branches that have been fitted before, which the network then has."""
        folder = self._folder()
        state = load_checkpoint(folder, self.identity) if folder and self.fitting.resume else None
        if state is None:
            return 0
        self.network.load_state_dict(state["network"])
        return int(state["done"])

    def keep(self, done: int) -> None:
        """Remember the network with so many branches fitted."""
        folder = self._folder()
        if folder and shards.is_main():
            save_checkpoint(folder, {"done": done, "network": self.network.state_dict()}, self.identity)

    def workspace(self) -> Workspace | None:
        """Where the fit of the whole network keeps its own."""
        folder, resume = self.fitting.folder, self.fitting.resume
        return Workspace(folder, EVERY, resume, self.identity) if folder else None

    def _folder(self) -> Path | None:
        """Where the branches are kept."""
        if self.fitting.folder is None:
            return None
        folder = self.fitting.folder / BRANCHES
        folder.mkdir(exist_ok=True)
        return folder
