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

logger = logging.getLogger("vit2snn")


def compiled(reference: F, x: Tensor) -> F:
    """``reference`` compiled, if it is to compute with ``x`` on an accelerator; itself otherwise.

    It is also used as it is where it cannot be compiled, for want of a compiler or for any other reason.
    """
    return reference if x.device.type == "cpu" or is_eager() else _compiled(reference)


@cache
def _compiled(reference: F) -> F:
    fused: Callable[..., Any] | None = torch.compile(reference, dynamic=True)

    def run(*args: Any) -> Any:
        nonlocal fused
        if fused is not None:
            try:
                return fused(*args)
            except Exception as error:  # whatever a compiler may raise; what the reference raises, it raises again
                reason = str(error).strip().splitlines() or [type(error).__name__]
                logger.warning("%s cannot be compiled, so neurons are slower: %s", reference.__name__, reason[0])
                fused = None
        return reference(*args)

    return run  # type: ignore[return-value]
