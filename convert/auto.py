"""Choosing spiking branches by what they cost and by the error that they leave in each block."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from ..errors import RecipeError
from ..measure import FLOAT32, Meter, energy
from ..spiking import over_time
from ..spiking.branches.registry import admits, kinds
from ..tracing import catching, record
from .blocks import AUTO, KEPT, BlockPlan, any_new, mixes_tokens
from .branches import block_size, neuron_of, transformer_blocks
from .inputs import check_weights
from .precision import at_least_float32, full_precision
from .recipe import Recipe
from .spike_driven import fit_branch, restructure
from .structures import FIELDS

IMAGES = 64  # on which candidates are measured


@dataclass(frozen=True)
class Candidate:
    """One kind of branch in one block.

    Attributes:
        block: its index.
        field: ``attention`` or ``mlp``.
        kind: of the branch.
        error: ‖mean over time of what it adds - what the ANN's adds‖ / ‖what the ANN's adds‖, when the ANN's stream reaches it.
        energy: pJ for an image, in all timesteps: additions for each spike that arrives at a weight, and products of spikes by
            their size times the rate of firing.
        ann_energy: pJ of the branch that it replaces.
    """

    block: int
    field: str
    kind: str
    error: float
    energy: float
    ann_energy: float


def candidates(model: VisionTransformer, recipe: Recipe, batches: Iterable[Tensor], count: int = IMAGES) -> Iterator[Candidate]:
    """Measure every kind of branch in every block, for the fields that are ``auto``, one after the other.

    Each is fitted by itself to the ANN's own stream, so that blocks can be judged one by one.

    Args:
        model: the ANN; it is not changed.
        recipe: with ``auto`` in one field or both.
        batches: images ``[B, C, H, W]``.
        count: so many of the first images are used.

    Raises:
        ModelError: weights are not finite; the message names them.
    """
    check_weights(model)
    model = full_precision(copy.deepcopy(model).eval().requires_grad_(False))
    images = at_least_float32(_first(batches, count))
    with ExitStack() as stack:
        norms = [(stack.enter_context(catching(b.norm1)), stack.enter_context(catching(b.norm2))) for b in model.blocks]
        with torch.no_grad():
            model(images)
    own = record(model, tuple(images.shape[1:]))
    for field in recipe.structure.undecided:
        for kind in tried(model, recipe, field):
            other = {name: kept[0] for name, kept in KEPT.items()} | {field: kind}
            trial = recipe.changed(**other, max_error=None, max_energy=None)
            network, plans = copy.deepcopy(model), [BlockPlan(name, **other) for name in transformer_blocks(model)]
            restructure(network, plans, trial)
            network.eval()
            for index, name in enumerate(plan.name for plan in plans):
                part = f"{name}.{'attn' if field == 'attention' else 'mlp'}"
                stream = norms[index][field == "mlp"][0]
                error, spent = _measure(network.blocks[index], model.blocks[index], field, kind, trial, stream)
                macs = sum(o.macs for o in own if o.module.startswith(part))
                yield Candidate(index, field, kind, error, spent, FLOAT32.mac * macs)


def _first(batches: Iterable[Tensor], count: int) -> Tensor:
    """The first ``count`` images; no more batches are read than have them."""
    taken: list[Tensor] = []
    for images in batches:
        taken.append(images[: count - sum(map(len, taken))])
        if sum(map(len, taken)) == count:
            break
    return torch.cat(taken)


def tried(model: VisionTransformer, recipe: Recipe, field: str) -> list[str]:
    """The kinds of branches that a field leaves to be chosen, and that blocks of the model's size can have."""
    if field not in recipe.structure.undecided:
        return []
    size, neuron = block_size(model, model.blocks[0]), neuron_of(recipe.membrane.neuron)
    return [kind for kind in kinds(field) if admits(field, kind, size, neuron)]


def provisional(recipe: Recipe) -> Recipe:
    """The recipe with the first spiking kind wherever it says ``auto``: what can be converted does not depend on the choice."""
    first = {field: kinds(field)[0] for field in recipe.structure.undecided}
    return recipe.changed(**first, max_error=None, max_energy=None) if first else recipe


def choose(recipe: Recipe, found: Sequence[Candidate]) -> Recipe:
    """The recipe with the best plan of the candidates in place of ``auto``.

    It is the cheapest plan within ``max_error``, or the one of least error within ``max_energy``, or of least error; exact, by
    integer linear programming. Some block mixes tokens.

    Raises:
        RecipeError: no plan keeps the budget; the message tells the best figure there is.
    """
    error = np.array([candidate.error for candidate in found])
    energy = np.array([candidate.energy for candidate in found]) / _ann_energy(found)
    places = sorted({(c.block, c.field) for c in found})
    one_each = np.array([[(c.block, c.field) == place for c in found] for place in places], dtype=float)
    constraints = [LinearConstraint(one_each, 1, 1)]
    if "attention" in recipe.structure.undecided:
        mixes = np.array([[c.field == "attention" and mixes_tokens(c.kind) for c in found]], dtype=float)
        constraints.append(LinearConstraint(mixes, 1, np.inf))
    objective = error
    if recipe.max_error is not None:
        constraints.append(LinearConstraint(error[None] / len(places), -np.inf, recipe.max_error))
        objective = energy
    elif recipe.max_energy is not None:
        constraints.append(LinearConstraint(energy[None], -np.inf, recipe.max_energy))
    solution = milp(
        objective, integrality=np.ones(len(found)), bounds=(0, 1), constraints=constraints, options={"mip_rel_gap": 0.0}
    )
    if solution.x is None:
        raise _out_of_reach(recipe, found, len(places))
    return _with_kinds(recipe, [candidate for candidate, taken in zip(found, solution.x, strict=True) if taken > 0.5])


def figures(recipe: Recipe, found: Sequence[Candidate]) -> tuple[float, float]:
    """Of a recipe that `choose` made of the candidates: the mean error of its branches, and their energy over the ANN's."""
    chosen = [c for c in found if getattr(recipe.structure, c.field)[str(c.block)] == c.kind]
    return sum(c.error for c in chosen) / len(chosen), sum(c.energy for c in chosen) / _ann_energy(found)


def _ann_energy(found: Sequence[Candidate]) -> float:
    """Of all branches that are replaced, in pJ."""
    return sum({(c.block, c.field): c.ann_energy for c in found}.values())


def opened(recipe: Recipe) -> Recipe:
    """The recipe with ``auto`` in place of its branches of spikes, unless it says ``auto`` already, and without a budget.

    Raises:
        RecipeError: it has no branches of spikes.
    """
    fields = recipe.structure.undecided or [field for field in FIELDS if any_new(getattr(recipe.structure, field))]
    if not fields:
        raise RecipeError("the recipe has no branches of spikes, so none can be chosen", "take one such as qkformer-membrane")
    return recipe.changed(**dict.fromkeys(fields, AUTO), max_error=None, max_energy=None)


def _with_kinds(recipe: Recipe, chosen: Sequence[Candidate]) -> Recipe:
    """The recipe with the branches of candidates in place of ``auto``."""
    in_order = sorted(chosen, key=lambda candidate: candidate.block)
    fields = {field: {str(c.block): c.kind for c in in_order if c.field == field} for field in recipe.structure.undecided}
    return recipe.changed(**fields, max_error=None, max_energy=None)


def _measure(block: Block, original: Block, field: str, kind: str, recipe: Recipe, stream: Tensor) -> tuple[float, float]:
    """Fit one candidate to the ANN's stream ``[B, N, C]``.

    Returns:
        Its error, and the energy of its synaptic operations for an image in all timesteps, in pJ.
    """
    frames = stream.expand(recipe.timesteps, *stream.shape)
    with torch.no_grad():
        ((fitted, after),) = fit_branch(block, original, field, kind, recipe, [(frames, stream)])
        wanted = after - stream
        error = float((fitted.mean(0) - after).norm() / wanted.norm())
        norm, branch = (block.norm1, block.attn) if field == "attention" else (block.norm2, block.mlp)
        with Meter(block) as meter:
            over_time(lambda x: branch(norm(x)), meter.show(frames, batch=len(stream)))
    synaptic = [torch.stack([t.accumulates, t.multiplies], -1) for t in meter.tallies if t.kind != "function"]
    return error, sum(float(energy(counts).sum()) for counts in synaptic) / meter.images


def _out_of_reach(recipe: Recipe, found: Sequence[Candidate], places: int) -> RecipeError:
    """What the budget would have to be."""
    best: dict[tuple[int, str], float] = {}
    for candidate in found:
        figure = candidate.error if recipe.max_error is not None else candidate.energy
        place = candidate.block, candidate.field
        best[place] = min(best.get(place, np.inf), figure)
    if recipe.max_error is not None:
        return RecipeError(
            f"no plan leaves a mean error of at most {recipe.max_error}: the best one leaves {sum(best.values()) / places:.3f}",
            "raise the recipe's max_error",
        )
    cheapest = sum(best.values()) / _ann_energy(found)
    return RecipeError(
        f"no plan needs at most {recipe.max_energy} of the ANN's energy: the cheapest needs {cheapest:.3f}",
        "raise the recipe's max_energy",
    )
