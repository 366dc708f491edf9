"""The one training loop: from scratch or from a converted model, in one process or many, for any objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Annotated, Any, Protocol

import msgspec
import torch
from msgspec import Meta
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ..data import TrainingLoader, seed_of
from ..errors import DataError, DivergedError, ModelError
from ..spiking import straight_through
from .checkpoint import Workspace, load_checkpoint, restoring, save_checkpoint
from .diagnosis import first_non_finite
from .distributed import gather, is_sharded, make_accelerator, scatter, shardable, synchronised, whole_weights
from .metrics import Metrics, Step
from .objectives import Objective, classification
from .optimisation import Scale, make_optimizer, make_schedule, uniform
from .settings import Settings

STATISTICS_BATCHES = 100
"""Batches at the end from which the statistics of batch normalisation are taken."""
GRADIENT_NORM = 1.0
"""What gradients are clipped to."""
Batch = tuple[Tensor, Tensor]


class Batches(Sized, Iterable[Batch], Protocol):
    """Inputs and labels ``[B]``, a pass at a time: a `TrainingLoader`, or a list. Event frames are ``[T, B, C, H, W]``."""


@dataclass(frozen=True)
class Summary:
    """What a training was.

    Attributes:
        updates: of the weights, those before a resume included.
        loss: mean over the last epoch of this run; None if it had no updates left to make.
        seconds: of this run.
        main: whether this process is the one that writes results.
    """

    updates: int
    loss: float | None
    seconds: float
    main: bool


def train(
    model: nn.Module,
    batches: Batches,
    settings: Settings,
    *,
    objective: Objective = classification,
    lr_scale: Scale = uniform,
    workspace: Workspace | None = None,
    report: Callable[[Step], None] = lambda step: None,
    statistics: bool = True,
) -> Summary:
    """Train in place, gradients clipped to a norm of 1.

    Gradients flow through the spikes by the neurons' surrogates, and through time by their membranes. At the end the statistics
    of batch normalisation are taken anew with the final weights. Weights of integers stay such (see
    `vit2snn.spiking.straight_through`).

    One process needs nothing. Started by ``accelerate launch`` or ``torchrun``, each process calls this function with the same
    arguments and a `TrainingLoader`; batch normalisation then sees the batches of all processes. All random numbers are drawn
    from the seed, the update and the process, so that a resumed training ends in the very weights of one that was not
    interrupted.

    FSDP 2 shards weights and optimizer states where accelerate is told to (``ACCELERATE_USE_FSDP=true FSDP_VERSION=2``; it does
    so on GPUs only). They are gathered into the checkpoint and, at the end, into ``model``, of which each process keeps a whole
    copy. FSDP excludes ``ema``. Two processes on CPUs, which accelerate was made to take for GPUs, have trained to the weights
    of one; on GPUs FSDP has never been run, nor has ``fp16``.

    Args:
        model: on a device of the kind to train on; left in evaluation mode.
        batches: gone through once each epoch. Any but a `TrainingLoader` must give the same batches every time.
        settings: see `Settings`.
        objective: the terms of the loss.
        lr_scale: factor on the learning rate of a parameter, by its name in ``model``.
        workspace: where checkpoints and metrics go; None for none.
        report: called after each update, in the main process.
        statistics: take those of batch normalisation anew at the end; not where the objective has the model in evaluation mode.

    Raises:
        DataError: there are no batches, or fewer than one update needs.
        DivergedError: a loss or a gradient is not finite; the message names the module.
        ModelError: no parameter can be trained, or the optimizer, schedule, precision or way of sharding cannot be had.
        ArtifactError: the checkpoint cannot be written or read, or is one of other settings.
    """
    started = time.time()
    try:
        with straight_through(model):
            trainer = Trainer(model, batches, settings, objective, lr_scale, workspace, statistics)
            loss = trainer.run(report)
    finally:
        model.eval()
    return Summary(trainer.updates, loss, time.time() - started, trainer.accelerator.is_main_process)


class _Task(nn.Module):
    """Model and objective in one: mixed precision covers both, and what gets no gradient is known from the losses."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return dict(self.objective(self.model, x, labels))


class Trainer:
    """The state of a training; see `train`."""

    def __init__(
        self, model: nn.Module, batches: Batches, settings: Settings, objective: Objective, lr_scale: Scale,
        workspace: Workspace | None, statistics: bool,
    ) -> None:  # fmt: skip
        self.settings, self.batches, self.workspace, self.statistics = settings, batches, workspace, statistics
        self.objective, self.result = objective, model
        self.context = ExitStack()
        self.accelerator = make_accelerator(next(model.parameters()).device, settings.precision)
        self.sharded = is_sharded(self.accelerator)
        if isinstance(batches, TrainingLoader):
            batches.share(self.accelerator.process_index, self.accelerator.num_processes)
        self.steps = len(batches) // settings.accumulate
        if not self.steps:
            raise DataError(
                f"there are no batches to train on: {len(batches)}, and an update takes {settings.accumulate}",
                "give more images, or a smaller batch size",
            )
        self.updates, self.update, self.resumed = settings.updates(self.steps), 0, False
        self.model = shardable(model) if self.sharded else model
        optimizer = make_optimizer(self.model, settings, lr_scale)
        self.ema = self._average()
        self.model.train()
        self.task, self.optimizer = self.accelerator.prepare(_Task(self.model, objective), optimizer)
        self.scheduler = make_schedule(self.optimizer, settings, self.steps)
        self.identity = (
            asdict(settings) | (dict(workspace.identity) if workspace else {}) | ({"FSDP": 2} if self.sharded else {})
        )

    def run(self, report: Callable[[Step], None]) -> float | None:
        """Make all updates; the mean loss of the last epoch."""
        listeners = [report] if self.accelerator.is_main_process else []
        with self.context:
            self.context.enter_context(synchronised(self.model))
            self._resume()
            if self.workspace and self.accelerator.is_main_process:
                listeners.insert(0, self.context.enter_context(Metrics(self.workspace, self.update)))
            losses: list[float] = []
            while self.update < self.updates:
                losses = self._epoch(listeners)
            self._finish()
        return sum(losses) / len(losses) if losses else None

    def _epoch(self, listeners: Sequence[Callable[[Step], None]]) -> list[float]:
        """What is left of an epoch."""
        epoch, first = divmod(self.update, self.steps)
        losses = []
        accumulate = self.settings.accumulate
        batches = self._batches(epoch, first * accumulate)
        for step in range(first, min(self.steps, self.updates - epoch * self.steps)):
            started = time.perf_counter()
            update = [self._moved(x, y) for x, y in islice(batches, accumulate)]
            self.scheduler.step_update(self.update)
            terms = self._step(epoch, step, update)
            images = sum(len(labels) for _, labels in update) * self.accelerator.num_processes
            losses.append(sum(terms.values()))
            record = Step(
                epoch, step, self.steps, self.update, self.updates, losses[-1], self._lr(), terms,
                images / (time.perf_counter() - started),
            )  # fmt: skip
            self.update += 1
            for listener in listeners:
                listener(record)
            self._checkpoint(step == self.steps - 1)
        return losses

    def _batches(self, epoch: int, start: int, mixed: bool = True) -> Iterator[Batch]:
        if isinstance(self.batches, TrainingLoader):
            self.batches.set_epoch(epoch, start, mixed)
            return iter(self.batches)
        return islice(self.batches, start, None)

    def _moved(self, x: Tensor, labels: Tensor) -> Batch:
        """A batch on the device; what is pinned is copied while the program goes on."""
        device = self.accelerator.device
        return x.to(device, non_blocking=x.is_pinned()), labels.to(device, non_blocking=labels.is_pinned())

    def _step(self, epoch: int, step: int, update: Sequence[Batch]) -> dict[str, float]:
        """One update; the terms of its loss, averaged over batches and processes."""
        self.optimizer.zero_grad()
        names: list[str] = []
        values = []
        for number, (x, labels) in enumerate(update):
            self._seed(number)
            # Gradients travel between the processes once, with the last batch.
            last = number == len(update) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.task):
                with self.accelerator.autocast():
                    terms = self.task(x, labels)
                names, stacked = list(terms), torch.stack(list(terms.values()))
                self.accelerator.backward(stacked.sum() / len(update))
            values.append(stacked.detach())
        means: Any = self.accelerator.reduce(torch.stack(values).mean(0), "mean")
        found = dict(zip(names, means.tolist(), strict=True))
        self._check("loss", sum(found.values()), epoch, step, update)
        norm = self.accelerator.clip_grad_norm_(self.task.parameters(), GRADIENT_NORM)
        if self.accelerator.scaler is None:  # which skips such updates
            self._check("norm of the gradients", float(norm), epoch, step, update)
        # What moments of another optimizer lack, only an update tells.
        with restoring(self.workspace.folder) if self.workspace and self.resumed else nullcontext():
            self.optimizer.step()
        self.resumed = False
        if self.ema is not None:
            self.ema.update(self.model, step=self.update + 1)
        return found

    def _lr(self) -> float:
        """What the schedule gives to parameters of scale 1."""
        rates = (group["lr"] / group["lr_scale"] for group in self.optimizer.param_groups if group["lr_scale"])
        return max(rates, default=0.0)

    def _seed(self, number: int) -> None:
        """Random numbers of a batch, the ``number``-th of an update, are its own: there is no state of generators to keep."""
        torch.manual_seed(seed_of("update", self.settings.seed, self.update, number, self.accelerator.process_index))

    def _check(self, what: str, value: float, epoch: int, step: int, update: Sequence[Batch]) -> None:
        if math.isfinite(value):
            return
        model = self._assembled()
        # Each process looks by itself: batch normalisations would wait for those that have found it already.
        self.context.close()

        def losses() -> Iterator[Tensor]:
            for number, (x, labels) in enumerate(update):
                self._seed(number)
                with self.accelerator.autocast():
                    loss = torch.stack(list(self.objective(model, x, labels).values())).sum()
                yield loss

        where = first_non_finite(model, losses, torch.cat([x.flatten() for x, _ in update]))
        raise DivergedError(
            f"the {what} is {value} at step {step} of epoch {epoch + 1}: {where}",
            "lower the learning rate (--lr); the last checkpoint, if there is one, is from before this step",
        )

    def _finish(self) -> None:
        """The final weights and their statistics, in the model that was given, without the gradients of the last update."""
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        model = self._assembled()
        if not self.statistics:
            return
        # Running averages still remember their start after few steps, and sparse spikes have variances far below it.
        batches = self._batches(-(-self.updates // self.steps), 0, mixed=False)
        self._seed(0)
        with synchronised(model):
            update_bn(islice(batches, STATISTICS_BATCHES), model.train(), self.accelerator.device)

    def _assembled(self) -> nn.Module:
        """The model that was given, with the weights of now; all processes call it, as each has but its shard."""
        if self.sharded:
            weights = {name.removeprefix("model."): value for name, value in whole_weights(self.task).items()}
            own = self.result.state_dict()
            self.result.load_state_dict({name: value.reshape(own[name].shape) for name, value in weights.items()})
            self.result.to(self.accelerator.device)
        return self.result

    def _average(self) -> Any:
        if self.settings.ema is None:
            return None
        if self.sharded:
            raise ModelError("an average of weights (--ema) cannot be kept of weights that FSDP shards", "use DDP, or no --ema")
        # Buffers are thresholds and statistics: the former do not change, and the latter are taken anew.
        model = self.model.to(self.accelerator.device)
        return ModelEmaV3(model, self.settings.ema, use_warmup=True, exclude_buffers=True)

    def _checkpoint(self, epoch_ends: bool) -> None:
        if self.workspace is None:
            return
        every = self.workspace.every
        if self.update < self.updates and (self.update % every if every else not epoch_ends):
            return
        scaler = self.accelerator.scaler
        weights, moments = self._states()
        state = {
            "update": self.update, "model": weights, "optimizer": moments,
            "ema": self.ema.module.state_dict() if self.ema else None, "scaler": scaler.state_dict() if scaler else None,
        }  # fmt: skip
        if self.accelerator.is_main_process:
            save_checkpoint(self.workspace.folder, state, self.identity)

    def _states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.sharded:
            return gather(self.task, self.optimizer.optimizer)
        return self.model.state_dict(), self.optimizer.state_dict()

    def _resume(self) -> None:
        state = load_checkpoint(self.workspace.folder, self.identity) if self.workspace and self.workspace.resume else None
        if state is not None and self.workspace:
            with restoring(self.workspace.folder):
                self._restore(state)
            self.resumed = True

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.update = msgspec.convert(state["update"], Annotated[int, Meta(ge=0, le=self.updates)])
        if self.sharded:
            scatter(self.task, self.optimizer.optimizer, state["model"], state["optimizer"])
        else:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
