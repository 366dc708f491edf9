"""The tables of neurons, whose shapes a file tells: whether they are those of what the neurons see. Kernels rely on it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..convert import SpikingModel
from ..spiking import CodedNeuron
from ..spiking.substitutes import RectifiedSoftmax


@torch.no_grad()
def check_tables(snn: SpikingModel) -> None:
    """Show an image for a timestep, and compare the tables of each neuron with what it sees before it computes.

    Raises:
        ValueError: they do not fit each other or what the neuron sees, are not finite, or the network gives no logits; the
            message names the neuron.
    """
    coded = {name: neuron for name, neuron in snn.neurons().items() if neuron.alphabet is not None}
    masked = [module for module in snn.network.modules() if isinstance(module, RectifiedSoftmax)]
    handles = [softmax.register_forward_pre_hook(_check_mask) for softmax in masked]
    handles += [neuron.register_forward_pre_hook(partial(_compare, name)) for name, neuron in coded.items()]
    try:
        for name, neuron in coded.items():
            _check(name, neuron)
        logits = snn(torch.zeros(1, *snn.input_size, dtype=next(snn.network.parameters()).dtype), 1)
    finally:
        for handle in handles:
            handle.remove()
    if logits.shape[:2] != (1, 1):
        raise ValueError(f"it gives logits of shape {list(logits.shape)} for a timestep and an image")


def _check_mask(softmax: RectifiedSoftmax, inputs: tuple[Any, ...]) -> None:
    softmax.check_mask(inputs[0])


def _check(name: str, neuron: CodedNeuron) -> None:
    tables = {"threshold": neuron.threshold, "ratio": neuron.ratio, "silence": neuron.silence, "bias": neuron.bias}
    for what, table in tables.items():
        if not table.ndim:
            raise ValueError(f"{what} of {name} has no timesteps")
    if not len(neuron.threshold):
        raise ValueError(f"{name} has no thresholds")
    for what in ("ratio", "silence"):
        if len(tables[what]) not in (0, len(neuron.threshold)):
            raise ValueError(f"{name} has {len(neuron.threshold)} thresholds, and {what} of {len(tables[what])} timesteps")
    for what in ("threshold", "ratio", "bias", "prior"):
        if not torch.isfinite(getattr(neuron, what)).all():
            raise ValueError(f"{what} of {name} is not finite")
    if bool((neuron.threshold < 0).any()):
        raise ValueError(f"threshold of {name} is below 0")


def _compare(name: str, neuron: CodedNeuron, inputs: tuple[Any, ...]) -> None:
    """Refuse tables that do not spread over an image's input ``[...]``, or ``[K, ...]`` where there are K windows of it."""
    seen: Tensor = inputs[0]  # of one image in one timestep
    image = seen.shape[1:] if len(seen) == 1 else seen.shape
    steps = {what: getattr(neuron, what) for what in ("threshold", "ratio", "silence", "bias")}
    shapes = {what: table.shape[1:] for what, table in steps.items() if len(table)} | {"prior": neuron.prior.shape}
    for what, shape in shapes.items():
        own = (1,) * (len(image) - len(shape)) + tuple(shape)
        if len(own) != len(image) or any(size not in (1, whole) for size, whole in zip(own, image, strict=True)):
            raise ValueError(f"{what} of {name} has shape {list(shape)}, and what it sees {list(image)}")
