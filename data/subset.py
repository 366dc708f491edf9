"""Which images of a source are used: seeded, class-balanced, and never one that must be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from .sources import ImageSource

S = TypeVar("S")


def balanced_order(labels: list[int], seed: int) -> list[int]:
    """All indices in a seeded random order whose every beginning has the classes equally often (to within one)."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    seen: Counter[int] = Counter()
    rank = np.empty(len(labels), dtype=np.int64)
    for place, index in enumerate(shuffled):
        rank[place] = seen[labels[index]]
        seen[labels[index]] += 1
    return [int(index) for index in shuffled[np.argsort(rank, kind="stable")]]


def choose(
    source: ImageSource,
    prepare: Callable[..., S],
    count: int | None,
    seed: int,
    unwanted: Callable[[S], bool] = lambda sample: False,
) -> Iterator[S]:
    """The chosen images of a source, prepared one by one.

    Args:
        source: where they come from.
        prepare: called with each image and its label.
        count: how many to choose, class-balanced for a source with random access, the first ones of a stream; None for all,
            in the source's order.
        seed: of the choice.
        unwanted: tells prepared samples that are passed over; they do not count.
    """
    raw = source.stream()
    if source.read is not None and source.labels is not None and count is not None:
        raw = map(source.read, balanced_order(source.labels, seed))
    chosen = 0
    for image, label in raw:
        sample = prepare(image, label)
        if unwanted(sample):
            continue
        yield sample
        chosen += 1
        if chosen == count:
            return
