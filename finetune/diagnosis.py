"""Where a loss that is not finite comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, losses: Callable[[], Iterator[Tensor]], inputs: Tensor) -> str:
    """In words: the place where a value is not finite first, when the losses are computed again.

    Looked for in this order: parameters, inputs, outputs of modules in the order of execution, gradients in the order of
    backpropagation.

    Args:
        model: the network; its gradients are replaced.
        losses: computes the losses of the batches of an update one by one.
        inputs: all images of these batches.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name!r} is not finite"
    if not _finite(inputs):
        return "the inputs are not finite"
    found: list[str] = []

    def look(name: str, module: nn.Module, given: Any, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not _finite(output):
            found.append(name)

    # The innermost of nested modules ends first, so it is the one that is named.
    handles = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules()]
    model.zero_grad()
    try:
        for loss in losses():
            if found:
                return f"the first value that is not finite comes out of {found[0] or 'the model itself'!r}"
            if not _finite(loss):
                return "all modules give finite values, and the objective does not"
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the values are finite, and the gradient of {name!r} is not"
    return "all values are finite when this process computes them again by itself"


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())
