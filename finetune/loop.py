"""The one training loop: from scratch, and for whatever objective is given to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ..errors import DataError, ModelError

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Model, inputs and labels to the loss, a scalar."""
STATISTICS_BATCHES = 100
"""Batches at the end from which the statistics of batch normalisation are taken."""


class Batches(Sized, Iterable[tuple[Tensor, Tensor]], Protocol):
    """Inputs and labels ``[B]``, a pass at a time, such as a DataLoader. Event frames are ``[T, B, C, H, W]``."""


@dataclass(frozen=True)
class Step:
    """A step of the optimizer that has been taken.

    Attributes:
        epoch: from 0.
        step: within the epoch, from 0.
        steps: in an epoch.
        loss: before the step.
        lr: learning rate of the step.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    lr: float


def classification(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the logits after all timesteps."""
    return nn.functional.cross_entropy(model(x), labels)


def train(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    *,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    objective: Objective = classification,
    report: Callable[[Step], None] = lambda step: None,
) -> None:
    """Train in place by AdamW with one epoch of warm-up and a cosine to zero; gradients are clipped to a norm of 1.

    Gradients flow through the spikes by the neurons' surrogates, and through time by their membranes. At the end the statistics
    of batch normalisation are taken anew with the final weights.

    Args:
        model: on the device to train on; left in evaluation mode.
        batches: gone through once each epoch.
        epochs: passes.
        lr: learning rate at its peak.
        weight_decay: of weights; biases and normalisations have none.
        objective: the loss.
        report: called after each step.

    Raises:
        DataError: there are no batches.
        ModelError: the loss is not finite.
    """
    if not len(batches):
        raise DataError("there are no batches to train on", "give more images, or a smaller batch size")
    device = next(model.parameters()).device
    steps = len(batches)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=weight_decay)
    scheduler = _cosine(optimizer, epochs, steps, lr)
    model.train()
    try:
        for epoch in range(epochs):
            for step, (x, labels) in enumerate(batches):
                scheduler.step_update(epoch * steps + step)
                loss = objective(model, x.to(device), labels.to(device))
                if not torch.isfinite(loss):
                    raise ModelError(
                        f"the loss is {loss.item()} at step {step} of epoch {epoch + 1}", "lower the learning rate (--lr)"
                    )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                report(Step(epoch, step, steps, loss.item(), optimizer.param_groups[0]["lr"]))
        # Running averages still remember their start after few steps, and sparse spikes have variances far below it.
        update_bn(islice(batches, STATISTICS_BATCHES), model, device)
    finally:
        model.eval()


def _cosine(optimizer: torch.optim.Optimizer, epochs: int, steps: int, lr: float) -> CosineLRScheduler:
    """An epoch of warm-up, where there are more, and a cosine to zero over the rest; counted in steps."""
    warmup = steps if epochs > 1 else 0
    return CosineLRScheduler(
        optimizer, t_initial=epochs * steps - warmup, warmup_t=warmup, warmup_lr_init=lr / 100, warmup_prefix=True,
        t_in_epochs=False,
    )  # fmt: skip
