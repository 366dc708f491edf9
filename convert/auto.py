"""Choosing new branches by what they cost and by the error that they cause in each block."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ..data import digest
from ..errors import RecipeError
from ..spiking import shards
from .blocks import AUTO, any_new, is_new, mixes_tokens
from .branches import transformer_blocks
from .fitting import weights_digest
from .inputs import check_weights
from .measured import read_measured, write_measured
from .precision import at_least_float32, full_precision
from .recipe import Recipe
from .structures import FIELDS
from .trials import Candidate, trials

IMAGES = 64  # on which candidates are measured

KINDS = {
    "attention": ("qk-relu+conv", "experts+conv", "ssa+conv", "qk-channel+conv", "softmax"),
    "mlp": ("relu", "emsp", "mlp"),
}
"""What there is to choose from: each way of mixing tokens, and what the ANN has."""


def candidates(
    model: VisionTransformer, recipe: Recipe, batches: Iterable[Tensor], count: int = IMAGES, seed: int = 0,
    folder: Path | None = None, resume: bool = False,
) -> Iterator[Candidate]:  # fmt: skip
    """Measure every kind of branch in every block, for the fields that are ``auto``, one after the other.

    Each is fitted by itself to the ANN's own stream, so that blocks can be judged one by one. The processes of a group, each
    with its share of the images, share the work, and all get the candidates that one process gets with all images.

    Args:
        model: the ANN; it is not changed.
        recipe: with ``auto`` in one field or both.
        batches: images ``[B, C, H, W]``.
        count: so many of the first images are used.
        seed: of what branches start from, and of the order of images.
        folder: where candidates are kept as soon as they are measured (see `vit2snn.finetune.open_folder`); None for nowhere.
        resume: measure only those that are not in ``folder`` yet.

    Raises:
        UnsupportedModuleError: the model's branches cannot be exchanged as a whole.
        ModelError: weights are not finite; the message names them.
        DataError: there are fewer images than a fit of substitutes takes.
        ArtifactError: what is in the folder is damaged, or was begun with other arguments, or it cannot be written.
    """
    transformer_blocks(model)
    check_weights(model)
    model = full_precision(copy.deepcopy(model).eval().requires_grad_(False))
    kinds = {field: KINDS[field] for field in recipe.structure.undecided}
    images = at_least_float32(_together(batches, count))
    identity = {
        "model": getattr(model, "pretrained_cfg", {}).get("architecture"), "weights": weights_digest(model),
        "recipe": recipe.to_json(), "images": digest(images), "seed": seed,
    }  # fmt: skip
    known = read_measured(folder, identity) if folder and resume else []
    found: list[Candidate] = []
    for candidate in trials(model, recipe, kinds, images, seed, known):
        found.append(candidate)
        if folder and shards.is_main() and candidate not in known:
            write_measured(folder, identity, found)
        yield candidate


def _together(batches: Iterable[Tensor], count: int) -> Tensor:
    """The first ``count`` images of all processes, which have every P-th each."""
    own = _first(batches, -(-count // shards.processes()))
    if shards.processes() == 1:
        return own
    shares = [share.to(own.device) for share in shards.collected([own.cpu()])]
    in_turn = chain.from_iterable(zip_longest(*shares))
    return torch.stack([image for image in in_turn if image is not None][:count])


def _first(batches: Iterable[Tensor], count: int) -> Tensor:
    """The first ``count`` images; no more batches are read than have them."""
    taken: list[Tensor] = []
    for images in batches:
        taken.append(images[: count - sum(map(len, taken))])
        if sum(map(len, taken)) == count:
            break
    return torch.cat(taken)


def provisional(recipe: Recipe) -> Recipe:
    """The recipe with the first new kind wherever it says ``auto``: what can be converted does not depend on the choice."""
    first = {field: KINDS[field][0] for field in recipe.structure.undecided}
    return recipe.changed(**first, max_error=None, max_energy=None) if first else recipe


def choose(recipe: Recipe, found: Sequence[Candidate]) -> Recipe:
    """The recipe with the best plan of the candidates in place of ``auto``.

    It is the cheapest plan within ``max_error``, or the one of least error within ``max_energy``, or of least error; exact, by
    integer linear programming. Some block mixes tokens, and some branch is new.

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
    constraints.append(LinearConstraint(np.array([[is_new(c.kind) for c in found]], dtype=float), 1, np.inf))
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
    """The recipe with ``auto`` in place of its new branches, unless it says ``auto`` already, and without a budget.

    Raises:
        RecipeError: it has none.
    """
    fields = recipe.structure.undecided or [field for field in FIELDS if any_new(getattr(recipe.structure, field))]
    if not fields:
        raise RecipeError("the recipe has no new branches, so none can be chosen", "take one such as qkformer")
    return recipe.changed(**dict.fromkeys(fields, AUTO), max_error=None, max_energy=None)


def _with_kinds(recipe: Recipe, chosen: Sequence[Candidate]) -> Recipe:
    """The recipe with the branches of candidates in place of ``auto``."""
    in_order = sorted(chosen, key=lambda candidate: candidate.block)
    fields = {field: {str(c.block): c.kind for c in in_order if c.field == field} for field in recipe.structure.undecided}
    return recipe.changed(**fields, max_error=None, max_energy=None)


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
