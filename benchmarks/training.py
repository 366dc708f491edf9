"""Updates per second of training on a GPU, by the package's own loop in mixed precision, and its memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import timm
import torch
from machine import memory
from parts import Budget, Row, Setting, attempt, no_time
from simulation import IMAGE, timm_model
from torch import nn

import vit2snn.zoo
from vit2snn import to_spiking
from vit2snn.convert import RECIPES
from vit2snn.finetune import Settings, Step, train

WARM, COUNTED = 3, 30  # updates; a quick run has one of each
CONVERTED = "deit_tiny_patch16_224"
LEAST = 20  # seconds that a case is not begun without


def training(setting: Setting, budget: Budget) -> Iterator[Row]:
    """A model of the zoo from random weights, and a conversion that is fine-tuned."""
    batch, zoo = (2, "qkformer_4_384_cifar10") if setting.quick else (32, "qkformer_10_384")
    cases: dict[str, Callable[[], nn.Module]] = {
        zoo: partial(timm.create_model, zoo),
        f"{CONVERTED}, spike-driven": partial(converted, setting.device),
    }
    for name, make in cases.items():
        case = f"{name}, bf16, batch {batch}"
        yield attempt(case, partial(measure, make, batch, setting)) if budget.left > LEAST else no_time(case, LEAST, budget)


def converted(device: str) -> nn.Module:
    """With random weights, and neurons that are balanced on noise."""
    recipe = RECIPES["spike-driven"].changed(refit="none")
    return to_spiking(timm_model(CONVERTED).to(device), recipe, torch.randn(8, *IMAGE, device=device))


def measure(make: Callable[[], nn.Module], batch: int, setting: Setting) -> Row:
    """The median update: passes forward and backward, and all that the loop does about them. Data are there already."""
    model = make().to(setting.device)
    size = IMAGE if isinstance(model, vit2snn.SpikingModel) else model.pretrained_cfg["input_size"]
    data = torch.randn(batch, *size, device=setting.device), torch.randint(10, (batch,), device=setting.device)
    warm, counted = (1, 1) if setting.quick else (WARM, COUNTED)
    rates: list[float] = []

    def note(step: Step) -> None:
        rates.append(step.images_per_second)

    settings = Settings(max_steps=warm + counted, lr=1e-4, precision="bf16")
    held = memory(lambda: train(model, [data] * (warm + counted), settings, report=note), setting.device)
    rate = statistics.median(rates[warm:])
    return {
        "timesteps": model.timesteps, "updates": counted, "updates_per_second": rate / batch, "images_per_second": rate,
        "memory_mb": held.added,
    }  # fmt: skip
