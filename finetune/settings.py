"""What decides how a training goes, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Precision = Literal["no", "bf16", "fp16"]
Schedule = Literal["cosine", "tanh", "poly", "wsd", "constant"]


@dataclass(frozen=True)
class Settings:
    """The settings of a training. Frozen, and of values that JSON can hold.

    Args:
        epochs: passes over the batches.
        max_steps: updates of the weights, in place of ``epochs``.
        lr: learning rate at its peak.
        opt: an optimizer by its name in timm (`timm.optim.list_optimizers`).
        sched: timm's schedule after the warm-up, counted in updates: ``cosine`` or ``tanh`` to zero, ``poly`` (a straight line
            to zero), ``wsd`` (constant, and over the last fifth to zero) or ``constant``.
        warmup_epochs: of a rise from a hundredth of ``lr``; left out where it would be all of the training.
        weight_decay: of weights; biases, normalisations and what the model exempts have none.
        accumulate: batches of which gradients are added up for one update. A remainder at the end of an epoch is dropped.
        precision: of the forward pass: float32 (``no``) or mixed with ``bf16`` or ``fp16`` (CUDA only).
        ema: decay of an exponential moving average of the weights, which is then the result; it rises to this value as
            1 - n^(-2/3) after n updates. None for the weights themselves.
        seed: of the random numbers drawn by the model (dropout).

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    epochs: int = 10
    max_steps: int | None = None
    lr: float = 2e-3
    opt: str = "adamw"
    sched: Schedule = "cosine"
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    accumulate: int = 1
    precision: Precision = "no"
    ema: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        holds = {
            "epochs": self.epochs >= 1,
            "max_steps": self.max_steps is None or self.max_steps >= 1,
            "lr": math.isfinite(self.lr) and self.lr > 0,
            "sched": self.sched in get_args(Schedule),
            "warmup_epochs": math.isfinite(self.warmup_epochs) and self.warmup_epochs >= 0,
            "weight_decay": math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            "accumulate": self.accumulate >= 1,
            "precision": self.precision in get_args(Precision),
            "ema": self.ema is None or 0 < self.ema < 1,
        }
        for name, right in holds.items():
            if not right:
                raise ValueError(f"the setting {name} of a training is out of range: {getattr(self, name)!r}")

    def updates(self, steps: int) -> int:
        """Updates in all, where an epoch has ``steps`` of them."""
        return self.max_steps or self.epochs * steps

    def warmup(self, steps: int) -> int:
        """Updates of the warm-up, where an epoch has ``steps`` of them."""
        wanted = round(self.warmup_epochs * steps)
        return wanted if wanted < self.updates(steps) else 0
