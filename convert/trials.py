"""Measuring kinds of branches in the blocks of a ViT, one kind in one block at a time, before any plan is carried out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from ..errors import DataError
from ..measure import FLOAT32
from ..tracing import catching, record
from .blocks import KEPT, BlockPlan, is_new
from .branches import transformer_blocks
from .fit_branches import BATCH, Effort, Place, fit_place, places
from .recipe import Recipe
from .substitution import substitute

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


def trials(model: VisionTransformer, recipe: Recipe, kinds: Mapping[str, Sequence[str]], images: Tensor) -> Iterator[Candidate]:
    """Measure the kinds of each field in every block, one after the other, each fitted by itself to the ANN's own stream.

    Args:
        model: the ANN in float32, in evaluation mode; blocks of it are replaced while they are measured.
        recipe: with ``auto`` in those fields.
        kinds: by field.
        images: ``[B, C, H, W]``.

    Raises:
        DataError: there are fewer images than a fit of substitutes takes.
    """
    if len(images) * (HELD - 1) < BATCH * HELD:
        raise DataError(
            f"{len(images)} images are too few to try substitutes on: {BATCH} are fitted to at once, and others measured on",
            "give more (--samples)",
        )
    with ExitStack() as stack:
        norms = [(stack.enter_context(catching(b.norm1)), stack.enter_context(catching(b.norm2))) for b in model.blocks]
        with torch.no_grad():
            logits = model(images)
        streams = {field: [caught[place][0] for caught in norms] for place, field in enumerate(PARTS)}
    macs = _macs(model, images)
    for field, tried in kinds.items():
        for kind in tried:
            figures = _figures(model, recipe, field, kind, streams[field], images, logits)
            for index, (error, spent) in enumerate(figures):
                yield Candidate(index, field, kind, error, spent, FLOAT32.mac * macs[field][index])


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


def _figures(
    model: VisionTransformer, recipe: Recipe, field: str, kind: str, streams: Sequence[Tensor], images: Tensor, logits: Tensor
) -> Iterator[tuple[float, float]]:
    """Error and energy of a substitute, or of the ANN's own branch, in each block."""
    network = copy.deepcopy(model)
    if is_new(kind):
        substitute(network, _plans(model, field, kind), recipe.structure)
    network.eval()
    macs = _macs(network, images)[field]
    found = [place for place in places(network, model) if place.name.endswith(f".{PARTS[field][1]}")]
    for block, place, stream, count in zip(model.blocks, found, streams, macs, strict=True):
        error = _lost(block, model, place, field, images, stream, logits) if is_new(kind) else 0.0
        yield error, FLOAT32.ac * count * recipe.timesteps


@torch.no_grad()
def _lost(
    block: Block, model: VisionTransformer, place: Place, field: str, images: Tensor, stream: Tensor, logits: Tensor
) -> float:
    """Fit one substitute to the ANN's stream ``[B, N, C]``; the squared relative error of the logits with it alone."""
    held = len(images) // HELD
    norm, branch, scale = place.own
    after = stream + scale(branch(norm(stream)))
    fit_place(place, stream[held:], stream[held:], after[held:], Effort("blocks", steps=STEPS))
    for part, ours in zip(PARTS[field], place.ours, strict=True):
        setattr(block, part, ours)
    found = model(images[:held])
    for part, own in zip(PARTS[field], place.own, strict=True):
        setattr(block, part, own)
    wanted = logits[:held]
    return float((found - wanted).square().sum() / (wanted - logits.mean(0)).square().sum())
