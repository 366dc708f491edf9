"""Reading ahead: while images are computed on, threads read the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import repeat
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")

AHEAD = 16
"""Items that each thread is ahead at most: together about a batch."""


def ahead(read: Callable[[Item], Found], items: Iterable[Item], workers: int) -> Generator[Found, None, None]:
    """What ``read`` makes of each item, in their order; an error is raised where its item would come.

    Decoding an image leaves Python to others for most of the time, so that threads do: they see what the caller sees, whatever
    it is, and need no copy of it.

    Args:
        read: called by several threads at once.
        items: gone through by the caller's thread.
        workers: threads, which end with the iterator, also where it is closed early; 0 reads each item when it is asked for.
    """
    if not workers:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Found]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) == AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def stream_ahead(stream: Iterator[Found], workers: int) -> Generator[Found, None, None]:
    """A stream, which no more than one thread can go through."""
    with closing(ahead(lambda pairs: next(pairs, None), repeat(stream), min(workers, 1))) as found:
        for item in found:
            if item is None:
                return
            yield item
