"""Settings of the whole process that pay on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .native import library

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGE, OLD_LIMIT = 2**30, 2**25  # glibc before 2.35 takes no larger threshold for mmap
SURPLUS = 2**29
"""Bytes of freed memory that are kept."""
RESIDENT = Path("/proc/self/statm")

_done = threading.local()


def prepare_process() -> None:
    """Keep freed memory for the next tensor and flush denormal numbers, in the first call of each thread; cheap afterwards.

    Large tensors are otherwise handed back to the system when they are freed, and every page of the next one is a page fault.
    The tails of a softmax are denormal, and an order of magnitude slower. It matters not what was computed before.
    """
    if getattr(_done, "once", False):
        return
    _done.once = True  # what a user sets afterwards stays
    keep_memory()
    flush_denormals(True)


def keep_memory() -> None:
    """Let no freed memory go back to the system, where the C library can be told so."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if adjust is not None and (adjust(MMAP_THRESHOLD, LARGE) or adjust(MMAP_THRESHOLD, OLD_LIMIT)):
        adjust(TRIM_THRESHOLD, LARGE)


class _Mallinfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` tells."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


class _Kept:
    """Freed memory that the process keeps, as far as glibc's heap tells.

    Args:
        libc: glibc of 2.33 or later.
    """

    def __init__(self, libc: Any) -> None:
        self.libc = libc
        libc.mallinfo2.restype = _Mallinfo
        self.page = os.sysconf("SC_PAGE_SIZE")
        self.least = self.unused()

    def unused(self) -> int:
        """Resident bytes that nobody has asked the heap for: freed ones, and code."""
        info = self.libc.mallinfo2()
        return int(RESIDENT.read_text().split()[1]) * self.page - int(info.uordblks + info.hblkhd)

    def release(self) -> None:
        """Hand freed memory back if there is much of it."""
        unused = self.unused()
        self.least = min(self.least, unused)
        if unused - self.least > SURPLUS:
            self.libc.malloc_trim(0)
            self.least = self.unused()


@cache
def _kept() -> _Kept | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return _Kept(libc) if hasattr(libc, "mallinfo2") and RESIDENT.exists() else None


def release_surplus() -> None:
    """Hand freed memory back to the system where the process keeps much of it, in holes that no tensor fits into.

    Many tensors that are freed and made beside others that stay fill a heap with them: without this the neurons of a large
    model, one after the other, take several times the memory of what is there at once. Cheap; of glibc 2.33 or later only.
    """
    kept = _kept()
    if kept:
        kept.release()


def flush_denormals(on: bool) -> None:
    """Whether denormal numbers are 0 in this thread and in those that compute for it.

    `torch.set_flush_denormal` reaches this thread alone, and threads that it starts later; those of OpenMP, which torch shares
    with the kernels, are started by the first large operation. Without kernels they stay as they are.
    """
    torch.set_flush_denormal(on)
    kernels = library()
    if kernels is not None:
        kernels.flush_denormals(on)
