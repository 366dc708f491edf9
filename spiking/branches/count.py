"""What branches cost, in closed form: no module is made. For one image and one timestep."""

from __future__ import annotations

from collections.abc import Iterable
from operator import add
from typing import NamedTuple


class Counts(NamedTuple):
    """Of a part of a network, for one image and one timestep; parts add up.

    Attributes:
        parameters: learned numbers, leaks of neurons included.
        layer_macs: multiply-accumulates of convolutions and linear layers.
        product_macs: of products of spikes by spikes, in the cheaper of their orders, in which they are computed.
        written_macs: the same in the order in which papers write them, (q kᵀ) v.
        neurons: that may send a spike.
        leaks: neurons with a parameter of their own, were they PLIF: one for each layer of them.
    """

    parameters: int = 0
    layer_macs: int = 0
    product_macs: int = 0
    written_macs: int = 0
    neurons: int = 0
    leaks: int = 0

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        return Counts(*map(add, self, other))


def together(parts: Iterable[Counts]) -> Counts:
    """The sum of parts."""
    return sum(parts, Counts())


def neurons(signal: int) -> Counts:
    """A layer of neurons, one for each value of a signal."""
    return Counts(neurons=signal, leaks=1)


def convolution(inputs: int, outputs: int, positions: int, kernel: int = 1, groups: int = 1, bias: bool = False) -> Counts:
    """A convolution and its batch normalisation."""
    weights = inputs // groups * outputs * kernel**2
    return Counts(parameters=weights + (3 if bias else 2) * outputs, layer_macs=weights * positions)


def projection(inputs: int, outputs: int, positions: int, kernel: int = 1, groups: int = 1, bias: bool = False) -> Counts:
    """The same and neurons behind it."""
    return convolution(inputs, outputs, positions, kernel, groups, bias) + neurons(outputs * positions)


def products(written: int, linear: int, linear_is_cheaper: bool) -> Counts:
    """Of q kᵀ v in the order (q kᵀ) v, and as computed: q (kᵀ v) where there are many tokens."""
    return Counts(product_macs=linear if linear_is_cheaper else written, written_macs=written)
