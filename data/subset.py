"""Which images of a source are used: seeded, class-balanced, and never one that must be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from .ahead import ahead, stream_ahead
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
    prepare: Callable[[Any, int], S],
    count: int | None,
    seed: int,
    unwanted: Callable[[S], bool] = lambda sample: False,
    workers: int = 0,
) -> Iterator[S]:
    """The chosen images of a source, prepared one by one.

    Args:
        source: where they come from.
        prepare: called with each image and its label.
        count: how many to choose, class-balanced for a source with random access, the first ones of a stream; None for all,
            in the source's order.
        seed: of the choice.
        unwanted: tells prepared samples that are passed over; they do not count.
        workers: threads that read and prepare ahead; see `ahead`.
    """
    with closing(_prepared(source, prepare, count, seed, workers)) as samples:
        yield from islice((sample for sample in samples if not unwanted(sample)), count)


def _prepared(
    source: ImageSource, prepare: Callable[[Any, int], S], count: int | None, seed: int, workers: int
) -> Generator[S, None, None]:
    """All images of a source, in the order in which they are chosen."""
    read, labels = source.read, source.labels
    if read is None or labels is None:
        return ahead(lambda pair: prepare(*pair), stream_ahead(source.stream(), workers), workers)
    order = source.order
    if order is None:
        order = range(len(labels)) if count is None else balanced_order(labels, seed)
    return ahead(lambda index: prepare(*read(index)), order, workers)
