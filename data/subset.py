"""Which images of a source are used: seeded, class-balanced, and never one that must be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from .ahead import ahead, stream_ahead
from .pictures import UnreadableError
from .sources import ImageSource

S = TypeVar("S")
Item = TypeVar("Item")


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
        unwanted: tells prepared samples that are passed over; they do not count, nor do images that the source skips.
        workers: threads that read and prepare ahead; see `ahead`.
    """
    with closing(_prepared(source, prepare, count, seed, workers)) as samples:
        yield from islice((sample for sample in samples if sample is not None and not unwanted(sample)), count)


def _prepared(
    source: ImageSource, prepare: Callable[[Any, int], S], count: int | None, seed: int, workers: int
) -> Generator[S | None, None, None]:
    """All images of a source, in the order in which they are chosen; None in the place of one that it skips."""
    read, labels = source.read, source.labels
    if read is None or labels is None:
        return ahead(
            skipping(source, lambda item: prepare(item[0](), item[1])), stream_ahead(source.stream(), workers), workers
        )
    order = source.order
    if order is None:
        order = range(len(labels)) if count is None else balanced_order(labels, seed)
    return ahead(skipping(source, lambda index: prepare(*read(index))), order, workers)


def skipping(source: ImageSource, read: Callable[[Item], S]) -> Callable[[Item], S | None]:
    """``read``, but None for an image that cannot be read, where the source skips such and is told."""

    def reading(item: Item) -> S | None:
        try:
            return read(item)
        except UnreadableError as error:
            if source.skipped is None:
                raise
            source.skipped(error)
            return None

    return reading


def readable(source: ImageSource, order: Iterable[int], count: int | None = None, workers: int = 0) -> list[int]:
    """The first ``count`` of the indices in ``order`` whose images can be read, or all; they are read only if the source skips.

    Raises:
        DataError: an image cannot be read, for another reason than damage.
    """
    read = source.read
    if source.skipped is None or read is None:
        return list(islice(order, count))
    with closing(ahead(skipping(source, lambda index: (index, read(index))[0]), order, workers)) as found:
        return list(islice((index for index in found if index is not None), count))
