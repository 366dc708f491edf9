"""Weights as integers: whole numbers of few bits, and for each output channel a scale, which folds into what is behind.

A layer computes with ``weight`` = integers · scale, in float, as any other. That its weight is of integers, a module beside it
says: ``weight_integers``, with the scale. Where a neuron sees the layer's output alone, its thresholds (and the layer's biases)
over the scale have the same effect as the scale itself, so that a chip adds integers; elsewhere a sum takes the scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .layers import InTurn
from .time import FullPrecision

MARK = "_integers"


class Integers(FullPrecision):
    """Says that a weight of the module that it is a child of is made of integers.

    Args:
        shape: of the scale: one number for each output channel, with as many axes as the weight.
        bits: of an integer, with its sign: 2 to 8. It is at most 2^(bits-1) - 1 in magnitude.

    Attributes:
        scale: ``[outputs, 1, ...]``, in float32 at least; what an integer of 1 is worth.
    """

    scale: Tensor

    def __init__(self, shape: tuple[int, ...], bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.ones(shape))

    @property
    def most(self) -> int:
        """The largest integer."""
        return int(2 ** (self.bits - 1) - 1)

    def integers(self, weight: Tensor) -> Tensor:
        """The nearest integers to a weight, ``[outputs, ...]``, int8."""
        return (weight.to(self.scale) / self.scale).round().clamp(-self.most, self.most).to(torch.int8)

    def weight(self, integers: Tensor, dtype: torch.dtype) -> Tensor:
        """What integers are worth."""
        return (integers * self.scale).to(dtype)

    def extra_repr(self) -> str:
        """The bits, as ``print(model)`` shows them."""
        return f"bits={self.bits}"


class Weight(NamedTuple):
    """A weight that is made of integers, where it is: its module, its name there, and what tells of the integers."""

    module: nn.Module
    name: str
    integers: Integers

    @property
    def parameter(self) -> Tensor:
        """Its values."""
        found: Tensor = getattr(self.module, self.name)
        return found


def make_integer(network: nn.Module, name: str, bits: int, axes: tuple[int, ...]) -> None:
    """Say of a weight that it is made of integers, which it is not yet; where a module is called in turn, of all its twins.

    Args:
        network: changed in place.
        name: of the parameter.
        bits: see `Integers`.
        axes: of its output channels, each of which gets a scale; none for one scale.
    """
    owner, _, leaf = name.rpartition(".")
    module = network.get_submodule(owner)
    parameter = getattr(module, leaf)
    shape = tuple(size if axis in axes else 1 for axis, size in enumerate(parameter.shape))
    for place in module.turns if isinstance(module, InTurn) else [module]:
        if f"{leaf}{MARK}" not in dict(place.named_children()):
            place.add_module(f"{leaf}{MARK}", Integers(shape, bits).to(parameter.device, parameter.dtype))


def integer_weights(network: nn.Module) -> dict[str, Weight]:
    """The weights that are made of integers, by name; one that has several names, by each."""
    return {
        f"{name.rpartition('.')[0]}.{leaf}".lstrip("."): Weight(network.get_submodule(name.rpartition(".")[0]), leaf, module)
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, Integers)
        for leaf in [name.rpartition(".")[2].removesuffix(MARK)]
    }


@contextmanager
def straight_through(network: nn.Module) -> Iterator[None]:
    """Within this context weights of integers can be trained: they are rounded as they are used, and gradients pass by.

    (Bengio et al., arXiv 1308.3432; Courbariaux et al., NeurIPS 2015.) Scales stay as they are. Afterwards the weights are of
    integers again.
    """
    with ExitStack() as stack:
        for weight in integer_weights(network).values():
            if not parametrize.is_parametrized(weight.module, weight.name):  # as one with several names may be
                parametrize.register_parametrization(weight.module, weight.name, _Rounded(weight.integers))
                stack.callback(parametrize.remove_parametrizations, weight.module, weight.name)
        yield


def store_integers(network: nn.Module) -> None:
    """Let a network hold integers and scales, in place, and make weights of them as they are used: for export."""
    for weight in integer_weights(network).values():
        if not parametrize.is_parametrized(weight.module, weight.name):
            weight.parameter.requires_grad_(False)
            parametrize.register_parametrization(weight.module, weight.name, _Stored(weight.integers), unsafe=True)


class _Rounded(nn.Module):
    def __init__(self, integers: Integers) -> None:
        super().__init__()
        self._apart = (integers,)  # so that it has one place only among the modules

    def forward(self, weight: Tensor) -> Tensor:
        (integers,) = self._apart
        rounded = integers.weight(integers.integers(weight.detach()), weight.dtype)
        return rounded + (weight - weight.detach())


class _Stored(nn.Module):
    def __init__(self, integers: Integers) -> None:
        super().__init__()
        self._apart = (integers,)

    def forward(self, integers: Tensor, scale: Tensor) -> Tensor:
        return integers * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        (integers,) = self._apart
        return integers.integers(weight), integers.scale.clone()
