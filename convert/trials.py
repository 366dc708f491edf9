"""Measuring kinds of branches in the blocks of a ViT, one kind in one block at a time, before any plan is carried out.

What is measured of one depends on no other, so that processes can share them, and those that are known be left out.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..data import seed_of
from ..errors import DataError
from ..measure import FLOAT32
from ..spiking import shards
from ..tracing import catching, record
from .blocks import KEPT, BlockPlan, is_new
from .branches import transformer_blocks
from .fit_branches import BATCH, Effort, Place, fit_place, places, start_place
from .inputs import seeded
from .recipe import Recipe
from .substitution import exchange

STEPS = 60
"""Updates of a substitute that is only to be measured."""
HELD = 4
"""One image in so many is not fitted to, and measured on."""
PARTS = {"attention": ("norm1", "attn", "ls1"), "mlp": ("norm2", "mlp", "ls2")}
"""Norm, branch and scale of a block."""


@dataclass(frozen=True)
class Candidate:
    """One kind of branch in one block.

    Attributes:
        block: its index.
        field: ``attention`` or ``mlp``.
        kind: of the branch.
        error: the squared relative error of the logits that it alone causes, in float, on images that it was not fitted to.
        energy: pJ for an image, in all timesteps: an addition for each multiply-accumulate and timestep, as if each neuron sent
            one spike.
        ann_energy: pJ of the branch that it replaces.
    """

    block: int
    field: str
    kind: str
    error: float
    energy: float
    ann_energy: float


def trials(
    model: VisionTransformer, recipe: Recipe, kinds: Mapping[str, Sequence[str]], images: Tensor, seed: int = 0,
    known: Collection[Candidate] = (),
) -> Iterator[Candidate]:  # fmt: skip
    """Measure the kinds of each field in every block, one after the other, each fitted by itself to the ANN's own stream.

    The processes of a group share the blocks; all get all candidates, the same that one process gets.

    Args:
        model: the ANN in float32, in evaluation mode; blocks of it are replaced while they are measured.
        recipe: with ``auto`` in those fields.
        kinds: by field.
        images: ``[B, C, H, W]``, the same in all processes.
        seed: of what substitutes start from, and of the order of images.
        known: candidates that have been measured before with the same arguments, and are given as they are.

    Raises:
        DataError: there are fewer images than a fit of substitutes takes.
    """
    if len(images) * (HELD - 1) < BATCH * HELD:
        raise DataError(
            f"{len(images)} images are too few to try substitutes on: {BATCH} are fitted to at once, and others measured on",
            "give more (--samples)",
        )
    before = {(c.field, c.kind, c.block): c for c in known}
    trial = _Trial(model, recipe, images, seed)
    blocks = range(len(model.blocks))
    for field, kind in ((field, kind) for field, tried in kinds.items() for kind in tried):
        found = [before[field, kind, block] for block in blocks if (field, kind, block) in before]
        yield from found
        left = [block for block in blocks if (field, kind, block) not in before]
        measured = trial.of_blocks(field, kind, list(shards.share(left)))
        for _ in range(0, len(left), shards.processes()):  # a block of each process
            with shards.alone():
                own = next(measured, None)
            yield from shards.collected([own] if own else [])


class _Trial:
    """The ANN on all images, and what is measured against it."""

    def __init__(self, model: VisionTransformer, recipe: Recipe, images: Tensor, seed: int) -> None:
        self.model, self.recipe, self.images, self.seed = model, recipe, images, seed

    @cached_property
    def ann(self) -> tuple[dict[str, list[Tensor]], Tensor]:
        """The streams ``[B, N, C]`` in front of each field's branch, block by block, and the logits."""
        with ExitStack() as stack, torch.no_grad():
            norms = [
                (stack.enter_context(catching(b.norm1)), stack.enter_context(catching(b.norm2))) for b in self.model.blocks
            ]
            logits = self.model(self.images)
        return {field: [caught[place][0] for caught in norms] for place, field in enumerate(PARTS)}, logits

    @cached_property
    def macs(self) -> dict[str, list[int]]:
        """Of the ANN; see `_macs`."""
        return _macs(self.model, self.images)

    def of_blocks(self, field: str, kind: str, blocks: Sequence[int]) -> Iterator[Candidate]:
        """Measure one kind in some blocks."""
        if not blocks:
            return
        network = copy.deepcopy(self.model)
        if is_new(kind):
            with self._seeded(field, kind):
                exchange(network, _plans(self.model, field, kind), self.recipe.structure)
        network.eval()
        macs = _macs(network, self.images)[field]
        found = [place for place in places(network, self.model) if place.name.endswith(f".{PARTS[field][1]}")]
        for block in blocks:
            error = 0.0
            if is_new(kind):
                with self._seeded(field, kind, block):
                    error = self._lost(block, field, found[block])
            energy, own = FLOAT32.ac * macs[block] * self.recipe.timesteps, FLOAT32.mac * self.macs[field][block]
            yield Candidate(block, field, kind, error, energy, own)

    def _seeded(self, *key: str | int) -> AbstractContextManager[None]:
        return seeded(seed_of("trial", self.seed, *key), self.images.device)

    @torch.no_grad()
    def _lost(self, index: int, field: str, place: Place) -> float:
        """Fit one substitute to the ANN's stream; the squared relative error of the logits with it alone."""
        streams, logits = self.ann
        block, stream, held = self.model.blocks[index], streams[field][index], len(self.images) // HELD
        norm, branch, scale = place.own
        after = stream + scale(branch(norm(stream)))
        start_place(place, stream[held:], stream[held:])
        fit_place(place, stream[held:], after[held:], Effort("blocks", self.seed, steps=STEPS))
        for part, ours in zip(PARTS[field], place.ours, strict=True):
            setattr(block, part, ours)
        found = self.model(self.images[:held])
        for part, own in zip(PARTS[field], place.own, strict=True):
            setattr(block, part, own)
        wanted = logits[:held]
        return float((found - wanted).square().sum() / (wanted - logits.mean(0)).square().sum())


def _macs(network: VisionTransformer, images: Tensor) -> dict[str, list[int]]:
    """Multiply-accumulates for an image in the branches of each field, block by block."""
    operations = record(network, tuple(images.shape[1:]))
    return {
        field: [
            sum(o.macs for o in operations if f"{o.module}.".startswith(f"blocks.{index}.{branch}."))
            for index in range(len(network.blocks))
        ]
        for field, (_, branch, _) in PARTS.items()
    }


def _plans(model: VisionTransformer, field: str, kind: str) -> list[BlockPlan]:
    """All blocks with that kind in one field, and the ANN's own in the other."""
    own = {name: kept[0] for name, kept in KEPT.items()}
    return [BlockPlan(name, **(own | {field: kind})) for name in transformer_blocks(model)]
