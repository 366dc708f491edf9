"""Settings of the whole process that pay on a CPU."""

from __future__ import annotations

import ctypes
import sys

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGE = 2**30


def prepare_process() -> None:
    """Flush denormal numbers, and keep freed memory for the next tensor; the commands of vit2snn do so first of all.

    The tails of a softmax are denormal, and an order of magnitude slower. Large tensors are otherwise handed back to the system
    when they are freed, and every page of the next one is a page fault. Call it before the first operation: threads take over
    the settings of the one that starts them.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux":
        adjust = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have no such setting
        if adjust is not None:
            adjust(TRIM_THRESHOLD, LARGE)
            adjust(MMAP_THRESHOLD, LARGE)
