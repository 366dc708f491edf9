"""The kernels of `neurons.c`: built by the system's C compiler when they are first needed, and kept in the user's cache.

They compute what the references in torch compute, to the last bit. Where there is no compiler, neurons use those.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .building import NotBuilt, loaded

SOURCE = Path(__file__).with_name("neurons.c")
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# Apple's compiler knows no OpenMP, and some know no processor by the name of "native".
EXTRAS = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())

logger = logging.getLogger("vit2snn")

_eager = ContextVar("eager", default=False)


@contextmanager
def eager() -> Iterator[None]:
    """Within this context neurons compute by their references in torch, and not by the fused kernels; in this thread."""
    token = _eager.set(True)
    try:
        yield
    finally:
        _eager.reset(token)


def is_eager() -> bool:
    """Whether the references are to be used; not known while a graph is made, as dynamo sees no context variables."""
    return not torch.compiler.is_compiling() and _eager.get()


def is_called(x: Tensor) -> bool:
    """Whether kernels may be called with ``x``: it is a tensor of torch's own, and no graph is being made."""
    return not torch.compiler.is_compiling() and not is_eager() and type(x) in (Tensor, torch.nn.Parameter)


def compiling(x: Tensor) -> bool:
    """Whether a graph is being made of what happens to ``x``, and is to hold the kernels, as operators.

    These find out whether there are kernels when the graph runs: it may do so on another machine, or within `eager`.
    """
    return torch.compiler.is_compiling() and x.dtype == torch.float32 and x.device.type in ("cpu", "cuda")


def kernels(x: Tensor) -> ctypes.CDLL | None:
    """The kernels, if they can compute with ``x``: a float32 tensor in the memory of the host."""
    return library() if x.dtype == torch.float32 and x.device.type == "cpu" and is_called(x) else None


@cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be built, which is logged once."""
    found = next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), "cc")
    command = shlex.split(os.environ.get("CC", "")) or [found]
    reasons = []
    for extras in EXTRAS:
        try:
            return _declared(loaded(SOURCE, [*command, *FLAGS, *extras]))
        except NotBuilt as error:
            reasons.append(str(error))
    logger.warning("the fused kernels of neurons cannot be built, so neurons are several times slower: %s", reasons[0])
    return None


class Table(ctypes.Structure):
    """``struct table``."""

    _fields_ = (("values", ctypes.c_void_p), ("offset", ctypes.c_void_p), ("step", ctypes.c_int64))


MOST_STEPS = 3
TABLES = 6 + MOST_STEPS  # prior, bias, least, threshold, gain and floor come before the steps


class Coded(ctypes.Structure):
    """``struct coded``."""

    _fields_ = (
        ("rows", ctypes.c_int64), ("width", ctypes.c_int64), ("input", ctypes.c_void_p), ("tables", Table * TABLES),
        ("steps", ctypes.c_int64), ("count", ctypes.c_int64), ("is_signed", ctypes.c_int64),
        ("keep", ctypes.c_float), ("renew", ctypes.c_float), ("scale", ctypes.c_float), ("weight", ctypes.c_float),
    )  # fmt: skip


class Membrane(ctypes.Structure):
    """``struct membrane``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("sends", "decays", "hard", "detached", "surrogate")),
        *((name, ctypes.c_float) for name in ("leak", "threshold", "start", "reset", "levels", "alpha")),
    )


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """With the types of arguments, so that pointers are not cut off to ints."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    coded, membrane = ctypes.POINTER(Coded), ctypes.POINTER(Membrane)
    library.coded_step.argtypes = [coded, pointer, number, pointer, pointer, pointer, number]
    library.membrane_forward.argtypes = [membrane, pointer, number, pointer, pointer, pointer, number, number]
    library.membrane_forward.restype = None
    library.membrane_backward.argtypes = [membrane, pointer, number, *[pointer] * 5, number, number]
    library.innovations.argtypes = [coded, pointer, number, pointer, number, number, number, pointer]
    library.innovations.restype = None
    library.flush_denormals.argtypes = [ctypes.c_int]
    library.flush_denormals.restype = None
    return library


def address(x: Tensor | None) -> int | None:
    """Of the first value; NULL for None."""
    return None if x is None else x.data_ptr()


def checked(status: int) -> None:
    """What a kernel returns.

    Raises:
        MemoryError: it got no memory.
    """
    if status:
        raise MemoryError("there is no memory for the scratch space of a neuron")
