"""What the parts of a measurement on a GPU share: what is measured on, how long there is, and cases that may fail alone."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """On what, and how much.

    Attributes:
        device: ``cuda``, or ``cpu`` to see that all of it runs.
        quick: a little of everything.
    """

    device: str
    quick: bool

    @property
    def types(self) -> dict[str, torch.dtype]:
        """Of weights and activations."""
        return {"bf16": torch.bfloat16, "fp32": torch.float32}


class Budget:
    """Seconds that may be spent from now on."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; none are below 0."""
        return max(self.end - time.monotonic(), 0.0)

    def share(self, part: float) -> Budget:
        """A part of what is left, 0..1."""
        return Budget(part * self.left)


def attempt(case: str, call: Callable[[], Row]) -> Row:
    """The row of a case; one that says why, where it cannot be measured. The cases after it have the memory to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return {"case": case} | call()
    except torch.OutOfMemoryError:
        return {"case": case, "skipped": "out of memory"}
    except Exception as error:  # whatever it is, the other cases are worth measuring
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        return {"case": case, "failed": f"{type(error).__name__}: {reason}"}


def no_time(case: str, needed: float, budget: Budget) -> Row:
    """The row of a case for which nothing is left."""
    return {"case": case, "skipped": f"takes {needed:.0f} s, and {budget.left:.0f} s are left"}
