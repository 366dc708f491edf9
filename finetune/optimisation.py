"""The optimizer and the schedule: which learning rate and which weight decay a parameter has, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from ..errors import ModelError
from .settings import Settings

Scale = Callable[[str], float]
"""The name of a parameter to the factor on its learning rate."""


def uniform(name: str) -> float:
    """The same learning rate for all."""
    return 1.0


def parameter_groups(model: nn.Module, weight_decay: float, scale: Scale = uniform) -> list[dict[str, Any]]:
    """Groups for a timm optimizer, with the ``lr_scale`` that timm's schedulers heed.

    Biases, normalisations (all parameters of one axis) and those that a module exempts by timm's ``no_weight_decay`` have no
    decay; frozen parameters are left out.

    Raises:
        ModelError: no parameter can be trained.
    """
    exempt = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if callable(listed := getattr(module, "no_weight_decay", None))
        for name in listed()
    }
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt
        key = scale(name), weight_decay if decays else 0.0
        group = groups.setdefault(key, {"params": [], "lr_scale": key[0], "weight_decay": key[1]})
        group["params"].append(parameter)
    if not groups:
        raise ModelError("the model has no parameters to train", "set requires_grad on those that shall learn")
    return list(groups.values())


def layer_scale(network: nn.Module, decay: float) -> Scale:
    """timm's layer decay: the head has factor 1, and every layer below it ``decay`` times that of the layer above.

    Args:
        network: a model that tells its layers apart by timm's ``group_matcher``.
        decay: 0..1.

    Raises:
        ModelError: the model does not tell.
    """
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        raise ModelError(
            f"{type(network).__name__} does not tell its layers apart (it has no group_matcher)", "leave --layer-decay away"
        )
    depths = group_parameters(network, matcher(coarse=False), reverse=True)
    last = max(depths.values())
    return lambda name: float(decay ** (last - depths.get(name, last)))


def make_optimizer(model: nn.Module, settings: Settings, scale: Scale) -> Optimizer:
    """timm's optimizer of that name, of `parameter_groups`.

    Raises:
        ModelError: timm has none of that name, it cannot be made, or no parameter can be trained.
    """
    groups = parameter_groups(model, settings.weight_decay, scale)
    try:
        optimizer: Optimizer = create_optimizer_v2(groups, opt=settings.opt, lr=settings.lr, weight_decay=settings.weight_decay)
    except (ValueError, TypeError, AssertionError) as error:
        raise ModelError(
            f"timm cannot make the optimizer {settings.opt!r}: {error}", "timm.optim.list_optimizers() names them all"
        ) from error
    return optimizer


def make_schedule(optimizer: Any, settings: Settings, steps: int) -> Any:
    """timm's scheduler of that name; call its ``step_update`` with the number of updates made.

    Raises:
        ModelError: the training is too short for the schedule.
    """
    warmup = settings.warmup(steps)
    try:
        # An "epoch" of the factory is an update here, so that a training may end within an epoch.
        scheduler, _ = create_scheduler_v2(
            optimizer, settings.sched, num_epochs=settings.updates(steps) - warmup, warmup_epochs=warmup, warmup_prefix=True,
            warmup_lr=settings.lr / 100, decay_rate=1.0, step_on_epochs=False, updates_per_epoch=1,
        )  # fmt: skip
    except ValueError as error:
        raise ModelError(f"timm cannot make the schedule {settings.sched!r}: {error}", "train for longer") from error
    return scheduler
