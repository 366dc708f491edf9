"""Data that is shared by the processes of a group (``torch.distributed``): each sees its share, and all read the same figures.

Figures over all data are sums, minima and maxima, so each process keeps those of its share, and what is read is put together.
All processes must read the same figures in the same order. Without a group, or in a group of one process, nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain, islice
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


_alone: ContextVar[bool] = ContextVar("vit2snn_alone", default=False)


def processes() -> int:
    """How many share the data."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone.get() else 1


def is_main() -> bool:
    """Whether this process is the one that writes: the first of a group, or one by itself."""
    return processes() == 1 or dist.get_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Within this context, and this thread, a process of a group has data of its own that it shares with nobody."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def share(items: Iterable[Item]) -> Iterator[Item]:
    """This process's share: of P processes, the p-th has every P-th item, from item p on."""
    return islice(items, dist.get_rank(), None, processes()) if processes() > 1 else iter(items)


def total(x: Tensor) -> Tensor:
    """The sum over processes, in the shape of ``x``, which is not changed."""
    return x if processes() == 1 else _reduced(x, dist.ReduceOp.SUM)


def largest(x: Tensor) -> Tensor:
    """The maximum over processes, element by element."""
    return x if processes() == 1 else _reduced(x, dist.ReduceOp.MAX)


def smallest(x: Tensor) -> Tensor:
    """The minimum over processes, element by element."""
    return x if processes() == 1 else _reduced(x, dist.ReduceOp.MIN)


def first(x: Tensor) -> Tensor:
    """The first process's ``x``; all have the same shape."""
    if processes() == 1:
        return x
    carried = _carried(x)
    dist.broadcast(carried, 0)
    return carried.to(x.device)


def collected(items: Iterable[Item]) -> tuple[Item, ...]:
    """What all processes have, one after another; they may have unequally many."""
    if processes() == 1:
        return tuple(items)
    lists: list[list[Item]] = [[] for _ in range(processes())]
    dist.all_gather_object(lists, list(items))
    return tuple(chain.from_iterable(lists))


def _reduced(x: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
    carried = _carried(x)
    dist.all_reduce(carried, how)
    return carried.to(x.device)


def _carried(x: Tensor) -> Tensor:
    """A copy that the group can move: NCCL moves what lies on a GPU only."""
    device = torch.device("cuda") if dist.get_backend() == "nccl" else x.device
    return x.detach().to(device, copy=True, memory_format=torch.contiguous_format)
