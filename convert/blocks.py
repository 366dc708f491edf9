"""Which branch each block of a transformer gets: the block-by-block fields of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import RecipeError
from ..spiking.branches import find, kinds
from ..spiking.branches.registry import has_interaction, spellings

Choice = str | Mapping[str, str]
"""One kind for all blocks, or kinds by block: ``{"0-7": "qk-token", "8-11": "ssa"}``. Later keys win; other blocks are kept."""

KEPT = {"attention": ("softmax", "shift-softmax"), "mlp": ("mlp", "shift-mlp")}
"""Branches that compute what the ANN's do, on values that coded neurons decode; the first one leaves the function as it is. All
others are of spikes: see `vit2snn.spiking.branches`."""
AUTO = "auto"
HALVES = ("first half", "second half")


@dataclass(frozen=True)
class BlockPlan:
    """What one block becomes: its module name and the kinds of its branches."""

    name: str
    attention: str
    mlp: str


def check_choice(field: str, choice: object) -> None:
    """Refuse a value of a block-by-block field that no model could have.

    Raises:
        RecipeError: it is neither a kind nor a mapping of blocks to kinds.
    """
    values = list(choice.values()) if isinstance(choice, Mapping) else [choice]
    allowed = KEPT[field] + spellings(field) + (() if isinstance(choice, Mapping) else (AUTO,))
    for value in values:
        if value not in allowed:
            hint = f"kinds: {', '.join((*KEPT[field], *kinds(field), AUTO))}"
            suffixed = ", ".join(kind for kind in spellings(field) if kind not in kinds(field))
            raise RecipeError(
                f"recipe field 'structure.{field}' has the unknown kind {value!r}",
                f"{hint}; with temporal interaction: {suffixed}" if suffixed else hint,
            )


def is_spiking(kind: str) -> bool:
    """Whether a branch of this kind is one of spikes."""
    return kind not in KEPT["attention"] + KEPT["mlp"]


def mixes_tokens(kind: str) -> bool:
    """Whether tokens see each other in attention of this kind, or in its temporal interaction."""
    return not is_spiking(kind) or find("attention", kind).mixes_tokens or has_interaction("attention", kind)


def any_spiking(choice: Choice) -> bool:
    """Whether a field asks for a branch of spikes in some block."""
    return choice == AUTO or any(map(is_spiking, choice.values() if isinstance(choice, Mapping) else [choice]))


def kinds_by_block(field: str, choice: Choice, blocks: Sequence[str]) -> list[str]:
    """The kind for each of ``blocks``, which are given by module name.

    Raises:
        RecipeError: a key names no block; the message tells the blocks.
    """
    if isinstance(choice, str):
        return [choice] * len(blocks)
    found = [KEPT[field][0]] * len(blocks)
    for key, kind in choice.items():
        chosen = _blocks_of(key, blocks)
        if not chosen:
            raise RecipeError(
                f"recipe field 'structure.{field}' names block {key!r}, and the model has the blocks 0-{len(blocks) - 1}",
                f"keys are numbers (3), ranges (0-7), {' or '.join(map(repr, HALVES))}, or patterns of names ({blocks[0]})",
            )
        for index in chosen:
            found[index] = kind
    return found


def check_mixing(plans: Sequence[BlockPlan]) -> None:
    """Refuse a network in which no token would ever see another.

    Raises:
        RecipeError: every block has attention such as Q-K token attention, which masks each token by its own query.
    """
    if plans and not any(mixes_tokens(plan.attention) for plan in plans):
        without = ", ".join(sorted({plan.attention for plan in plans}))
        raise RecipeError(
            f"no block of this plan mixes tokens: in attention of the kind {without} each token sees itself alone, so a class "
            "token would never see a patch, nor one patch another",
            'give the last blocks another attention, such as {"first half": "qk-token", "second half": "ssa"}',
        )


def _blocks_of(key: str, blocks: Sequence[str]) -> Sequence[int]:
    count = len(blocks)
    if key in HALVES:
        return range(count // 2) if key == HALVES[0] else range(count // 2, count)
    if re.fullmatch(r"\d+(-\d+)?", key):
        first, _, last = key.partition("-")
        chosen = range(int(first), int(last or first) + 1)
        return chosen if chosen and chosen[-1] < count else []
    return [index for index, name in enumerate(blocks) if fnmatchcase(name, key)]
