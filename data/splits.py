"""Splits of data, under the names that they usually have."""

from __future__ import annotations

from collections.abc import Collection

TRAINING = ("train", "training")
VALIDATION = ("validation", "val", "valid", "evaluation", "eval")
TEST = ("test", "testing")
SOUGHT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TRAINING, TRAINING), **dict.fromkeys(VALIDATION, (*VALIDATION, *TEST)), **dict.fromkeys(TEST, TEST)
}  # fmt: skip
"""Of the usual names of splits, those under which each is sought: ``test`` serves where there is no ``validation``."""


def find_split(split: str, names: Collection[str]) -> str | None:
    """That of ``names`` which ``split`` means, whatever its case; None if none does."""
    by_name = {name.lower(): name for name in names} | {name: name for name in names}
    return next((by_name[name] for name in (split, *SOUGHT.get(split.lower(), (split.lower(),))) if name in by_name), None)
