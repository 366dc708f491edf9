"""Fitting substitutes to the ANN that they stand in for, on images without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from ..data import digest
from ..finetune import Precision, Step, Workspace
from ..finetune.checkpoint import BRANCHES, SPIKES, load_checkpoint, restoring, save_checkpoint
from ..measure.batches import set_digest
from ..spiking import shards
from ..tracing.calls import tensors_in
from ..tracing.signals import on_meta
from .fields import to_fields
from .fit_branches import BATCH, HELD, STEPS, Effort, fit_branches, places
from .fit_network import fit_network
from .fit_parts import fit_parts
from .fit_spikes import HELD as MOST, fit_spikes
from .inputs import Batches
from .precision import at_least_float32, full_precision, without_half
from .recipe import Recipe
from .substitution import Substitution

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


class Fit:
    """The fit of a recipe's substitutes to an ANN: of the float network that they make, and then through membrane neurons.

    In memory are the images that are given as one tensor, or `HELD` others, and the streams of `HELD`.

    Args:
        network: with substitutes (see `vit2snn.convert.substitution.substitute`), in evaluation mode. It is fitted in place.
        chosen: which they are.
        ann: what it was made of, in evaluation mode.
        recipe: ``structure.refit`` and ``structure.passes`` say how far the fit goes.
        batches: images ``[B, C, H, W]``.
        seed: of their order and their views.
        fitting: see `Fitting`.

    """

    def __init__(
        self, network: Any, chosen: Substitution, ann: Any, recipe: Recipe, batches: Batches, seed: int, fitting: Fitting
    ) -> None:  # fmt: skip
        assert recipe.structure.refit is not None
        self.network, self.chosen, self.recipe, self.batches = network, chosen, recipe, batches
        self.ann = full_precision(ann)
        self.refit, self.seed, self.fitting = recipe.structure.refit, seed, fitting
        self.images, self.whole = held(batches)
        steps = max(len(self.images) // BATCH, 1) if self.whole else sum(1 for _ in batches)
        stages = [part.name for part in chosen.parts] or [place.name for place in places(network, ann) if place.is_new]
        each = BRANCH_COST / (len(chosen.parts) or 2 * len(chosen.blocks))
        self.work = _Work(stages, each, recipe, recipe.structure.passes * steps, fitting.report)
        self.identity = {
            "structure": to_fields(recipe.structure), "seed": seed, "precision": fitting.precision,
            "images": set_digest(batches.digests),
            "ann": weights_digest(self.ann),
        }  # fmt: skip

    def structure(self) -> None:
        """Fit the substitutes.

        Raises:
            ArtifactError: a checkpoint cannot be read or written, or is one of another fit.
        """
        with without_half(self.network):
            few, effort = self.images[:HELD], self._effort(BRANCHES, self.work.branch)
            if self.chosen.parts:
                fit_parts(self.network, self.ann, self.chosen.parts, few, effort)
            else:
                fit_branches(self.network, self.ann, few, effort)
            if self.refit == "network":
                shown = self.images if self.whole else self.batches
                folder = self.fitting.folder
                workspace = Workspace(folder, EVERY, self.fitting.resume, self.identity) if folder else None
                blocks = [block.name for block in self.chosen.blocks]
                passes, precision = self.recipe.structure.passes, self.fitting.precision
                fit_network(self.network, self.ann, blocks, shown, passes, self.seed, precision, workspace, self.work.network)

    def spikes(self) -> None:
        """Balance the membrane neurons, which the network has by now, and fit branches through them.

        Raises:
            ArtifactError: a checkpoint cannot be read or written, or is one of another fit.
        """
        timesteps = self.recipe.timesteps
        neurons = {"timesteps": timesteps, "spikes": to_fields(self.recipe.spikes)}
        with without_half(self.network):
            few = self.images[: min(HELD, max(MOST // timesteps, BATCH))]
            fit_spikes(self.network, self.ann, few, timesteps, self._effort(SPIKES, self.work.spikes, **neurons))

    def _effort(self, stage: str, report: Callable[[str, Step], None], **identity: Any) -> Effort:
        """What is done for each branch, from the checkpoint of a stage on."""
        most = len(self.work.branches) + 1  # through spikes, the head is one more
        saved = _Saved(self.network, self.fitting, stage, self.identity | identity, most)
        return Effort(self.refit, self.seed, self.fitting.precision, saved.done(), report, saved.keep)


def weights_digest(ann: nn.Module) -> str:
    """What the weights of an ANN are known by, when something that was begun with them is resumed."""
    return digest(torch.stack([p.float().norm() for p in ann.parameters()]))


def held(batches: Batches) -> tuple[Tensor, bool]:
    """The images in memory: all of those that are there anyway, or as many as are held; and whether they are all."""
    taken: list[Tensor] = []
    for images in map(at_least_float32, batches):
        if batches.in_memory or sum(map(len, taken)) < HELD:
            taken.append(images)
    images = torch.cat(taken)
    return images, len(images) == len(batches.digests)


@torch.no_grad()
def held_beside(ann: nn.Module, blocks: Sequence[str], input_size: tuple[int, ...]) -> int:
    """Bytes that a fit of the blocks, given by name, holds of an image beside it: what a block reads and gives, and the ANN's.

    They are counted on shapes alone, for the largest block, and held of at most `HELD` images.
    """
    shadow, sizes = on_meta(ann), [0]

    def count(block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        sizes.append(sum(x.nbytes for x in tensors_in([args, kwargs, output])))

    for name in blocks:
        shadow.get_submodule(name).register_forward_hook(count, with_kwargs=True)
    shadow(torch.empty(1, *input_size, dtype=next(shadow.parameters()).dtype, device="meta"))
    return 2 * max(sizes)


class _Work:
    """What there is to do, in updates of the whole network in float, and how much of it is done."""

    def __init__(
        self, branches: Sequence[str], each: float, recipe: Recipe, steps: int, report: Callable[[Progress], None]
    ) -> None:
        self.report, self.branches, self.each = report, branches, each
        refit = recipe.structure.refit
        trains = refit in ("blocks", "network")
        self.timesteps = recipe.timesteps
        self.first = self.each * STEPS * len(self.branches) if trains else 0.0
        self.second = self.first + (steps if refit == "network" else 0)
        self.total = self.second + (self.timesteps * self.first if recipe.spike_driven else 0)

    def branch(self, name: str, step: Step) -> None:
        """An update of one branch."""
        self.report(Progress(name, self.each * self._updates(name, step) / self.total))

    def network(self, step: Step) -> None:
        """An update of the whole network."""
        self.report(Progress("network", (self.first + step.update + 1) / self.total))

    def spikes(self, name: str, step: Step) -> None:
        """An update of one branch through its spikes, or of the head, which is quickly done."""
        spent = self.timesteps * self.each * self._updates(name, step) if name in self.branches else self.total - self.second
        self.report(Progress(f"{name}, spikes", (self.second + spent) / self.total))

    def _updates(self, name: str, step: Step) -> int:
        return self.branches.index(name) * STEPS + step.update + 1


class _Saved:
    """The checkpoints of a stage of an unfinished fit, if it has a folder for them."""

    def __init__(
        self, network: nn.Module, fitting: Fitting, stage: str, identity: Mapping[str, Any], most: int
    ) -> None:  # fmt: skip
        self.network, self.fitting, self.stage, self.identity, self.most = network, fitting, stage, identity, most

    def done(self) -> int:
        """The number of branches that have been fitted before, which the network then has."""
        folder = self._folder()
        state = load_checkpoint(folder, self.identity) if folder and self.fitting.resume else None
        if folder is None or state is None:
            return 0
        with restoring(folder):
            self.network.load_state_dict(state["network"])
            done: int = msgspec.convert(state["done"], Annotated[int, Meta(ge=0, le=self.most)])
            return done

    def keep(self, done: int) -> None:
        """Remember the network with so many branches fitted."""
        folder = self._folder()
        if folder and shards.is_main():
            save_checkpoint(folder, {"done": done, "network": self.network.state_dict()}, self.identity)

    def _folder(self) -> Path | None:
        """Where the branches are kept."""
        if self.fitting.folder is None:
            return None
        folder = self.fitting.folder / self.stage
        folder.mkdir(exist_ok=True)
        return folder
