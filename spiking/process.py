"""Settings of the whole process that pay on a CPU."""

from __future__ import annotations

import ctypes
import sys
import threading

import torch

from .native import library

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGE, OLD_LIMIT = 2**30, 2**25  # glibc before 2.35 takes no larger threshold for mmap

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


def flush_denormals(on: bool) -> None:
    """Whether denormal numbers are 0 in this thread and in those that compute for it.

    `torch.set_flush_denormal` reaches this thread alone, and threads that it starts later; those of OpenMP, which torch shares
    with the kernels, are started by the first large operation. Without kernels they stay as they are.
    """
    torch.set_flush_denormal(on)
    kernels = library()
    if kernels is not None:
        kernels.flush_denormals(on)
