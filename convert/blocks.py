"""Which branch each block of a transformer gets: the block-by-block fields of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction

from ..errors import RecipeError
from ..spiking.substitutes import INTERACTION, MLPS, interacts, is_sum, summands, terms

Choice = str | Mapping[str, str]
"""One kind for all blocks, or kinds by block: ``{"0-7": "qk-channel+conv", "8-11": "ssa+conv"}``. Later keys win, and other
blocks are kept."""

KEPT = {"attention": ("softmax", "shift-softmax"), "mlp": ("mlp", "shift-mlp")}
"""Branches that compute what the ANN's do, on values that coded neurons decode; the first one leaves the function as it is. All
others are new: substitutes (`vit2snn.spiking.substitutes`)."""
AUTO = "auto"
PARTS = {
    "first half": (Fraction(0), Fraction(1, 2)),
    "second half": (Fraction(1, 2), Fraction(1)),
    "first third": (Fraction(0), Fraction(1, 3)),
    "middle third": (Fraction(1, 3), Fraction(2, 3)),
    "last third": (Fraction(2, 3), Fraction(1)),
    "first two thirds": (Fraction(0), Fraction(2, 3)),
    "last two thirds": (Fraction(1, 3), Fraction(1)),
}
"""Keys for the same part of a model of any depth: from and to which share of its blocks. Of few blocks it may be none."""


@dataclass(frozen=True)
class BlockPlan:
    """What one block becomes: its module name and the kinds of its branches."""

    name: str
    attention: str
    mlp: str


def new_branches(plans: Sequence[BlockPlan]) -> tuple[str, ...]:
    """The names of the branches that are substitutes."""
    named = [(f"{plan.name}.{part}", kind) for plan in plans for part, kind in (("attn", plan.attention), ("mlp", plan.mlp))]
    return tuple(name for name, kind in named if is_new(kind))


def check_choice(field: str, choice: object) -> None:
    """Refuse a value of a block-by-block field that no model could have.

    Raises:
        RecipeError: it is neither a kind nor a mapping of blocks to kinds.
    """
    values = list(choice.values()) if isinstance(choice, Mapping) else [choice]
    for value in values:
        if value in KEPT[field] or (value == AUTO and not isinstance(choice, Mapping)):
            continue
        if not isinstance(value, str) or not is_substitute(field, value):
            sums = f"sums such as qk-channel+conv of {', '.join(terms())}, also with +{INTERACTION}"
            raise RecipeError(
                f"recipe field 'structure.{field}' has the unknown kind {value!r}",
                f"kinds: {', '.join((*KEPT[field], AUTO))}, {sums if field == 'attention' else ', '.join(MLPS)}",
            )


def is_new(kind: str) -> bool:
    """Whether a branch of this kind takes the place of the ANN's own."""
    return kind not in KEPT["attention"] + KEPT["mlp"]


def is_substitute(field: str, kind: str) -> bool:
    """Whether there is a substitute of this kind."""
    return is_sum(kind) if field == "attention" else kind in MLPS


def mixes_tokens(kind: str) -> bool:
    """Whether each token sees all others in attention of this kind, or in its temporal interaction."""
    return not is_new(kind) or interacts(kind) or any(found.mixes_tokens for found in summands(kind).values())


def any_new(choice: Choice) -> bool:
    """Whether a field asks for a new branch in some block."""
    return choice == AUTO or any(map(is_new, choice.values() if isinstance(choice, Mapping) else [choice]))


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
        if not chosen and key not in PARTS:
            raise RecipeError(
                f"recipe field 'structure.{field}' names block {key!r}, and the model has the blocks 0-{len(blocks) - 1}",
                f"keys are numbers (3), ranges (0-7), {', '.join(map(repr, PARTS))}, or patterns of names ({blocks[0]})",
            )
        for index in chosen:
            found[index] = kind
    return found


def check_mixing(plans: Sequence[BlockPlan]) -> None:
    """Refuse a network in which no token would ever see another.

    Raises:
        RecipeError: every block has attention such as Q-K token attention, which masks each token by its own query, or a
            convolution, which class tokens do not see.
    """
    if plans and not any(mixes_tokens(plan.attention) for plan in plans):
        without = ", ".join(sorted({plan.attention for plan in plans}))
        raise RecipeError(
            f"no block of this plan mixes all tokens: attention of the kind {without} shows a token to itself alone, or to its "
            "neighbours, so a class token would never see a patch",
            'give the last blocks another attention, such as {"first half": "qk-token+conv", "second half": "ssa+conv"}',
        )


def _blocks_of(key: str, blocks: Sequence[str]) -> Sequence[int]:
    count = len(blocks)
    if key in PARTS:
        start, end = PARTS[key]
        return range(int(count * start), int(count * end))
    if re.fullmatch(r"\d+(-\d+)?", key):
        first, _, last = key.partition("-")
        chosen = range(int(first), int(last or first) + 1)
        return chosen if chosen and chosen[-1] < count else []
    return [index for index, name in enumerate(blocks) if fnmatchcase(name, key)]
