"""Looking at signals inside a network while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

from torch import Tensor, nn


@contextmanager
def catching(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within this context, the list holds the (first) inputs that ``module`` got from this thread."""
    caught: list[Tensor] = []
    thread = get_ident()

    def catch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if get_ident() == thread:
            caught.append(inputs[0])

    handle = module.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


@contextmanager
def outputs_of(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within this context, the dictionary holds what the modules of these names put out last in this thread."""
    outputs: dict[str, Tensor] = {}
    thread = get_ident()

    def keep(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        if get_ident() == thread:
            outputs[name] = output

    handles = [network.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
