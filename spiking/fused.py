"""The time loops of neurons on accelerators: their references, compiled into one pass over memory by ``torch.compile``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from .native import is_eager

F = TypeVar("F", bound=Callable[..., Any])

HOT = 2**34
"""So many values a reference computes before it is compiled: compiling takes about a minute, and short runs are over before."""

logger = logging.getLogger("vit2snn")


def compiled(reference: F, x: Tensor) -> F:
    """``reference`` compiled, if it computes with ``x``, its first argument, on an accelerator; itself otherwise or in a graph.

    It is used as it is in the beginning, and where it cannot be compiled, for want of a compiler or for any other reason.
    """
    as_it_is = x.device.type == "cpu" or torch.compiler.is_compiling() or is_eager()
    return reference if as_it_is else _compiled(reference)


@cache
def _compiled(reference: F) -> F:
    fused: Callable[..., Any] | None = torch.compile(reference, dynamic=True)
    seen = 0

    def run(x: Tensor, *args: Any) -> Any:
        nonlocal fused, seen
        seen += x.numel()
        if fused is not None and seen > HOT:
            try:
                # Each way in which the tables of neurons broadcast is a graph of its own.
                with torch._C.DisableTorchFunction(), torch._dynamo.config.patch(recompile_limit=64):
                    return fused(x, *args)
            except torch.OutOfMemoryError:
                raise  # no fault of the compiler
            except Exception as error:  # whatever a compiler may raise; what the reference raises, it raises again
                reason = str(error).strip().splitlines() or [type(error).__name__]
                logger.warning("%s cannot be compiled, so neurons are slower: %s", reference.__name__, reason[0])
                fused = None
        return reference(x, *args)

    return run  # type: ignore[return-value]
