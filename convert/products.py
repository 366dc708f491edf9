"""Synaptic operations in the ``forward`` of a module that is no layer: found by running it once, and driven by neurons."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..spiking import SpikingDotProductAttention
from ..tracing import DrivenCall, Operation, drive
from ..tracing.calls import ELEMENTWISE, FUSED
from .registry import NeuronFactory


def drive_operations(module: nn.Module, operations: Sequence[Operation], neuron: NeuronFactory) -> nn.Module:
    """Drive every recorded synaptic operation of ``module.forward`` by neurons on all operands that depend on the image.

    Fused attention is opened into product, softmax, product, with neurons on query, key, softmax and value. The module keeps
    its code, its attributes and its children; the neurons are new children.

    Args:
        module: changed in place.
        operations: those of `vit2snn.tracing.record` that this module's own ``forward`` makes. Operands that are spikes
            already get no neuron.
        neuron: makes a neuron for given channel axes.
    """
    calls = {}
    synaptic = [operation for operation in operations if operation.macs]
    for index, operation in enumerate(synaptic):
        suffix = f"_{index}" if index else ""
        if operation.function in FUSED:
            heads = (-3, -1)
            name = f"spiking_attention{suffix}"
            module.add_module(name, SpikingDotProductAttention(
                query=neuron(heads), key=neuron(heads), weights=neuron((-3,)), value=neuron(heads)
            ))  # fmt: skip
            calls[operation.call] = DrivenCall(operation.function, {}, name)
        else:
            names = {
                position: f"spiking_operand{side}{suffix}"
                for side, position in enumerate(operation.operands)
                if position in operation.driven
            }
            for position, name in names.items():
                module.add_module(name, neuron(channel_axes(operation, position)))
            calls[operation.call] = DrivenCall(operation.function, names)
    return drive(module, calls)


def channel_axes(operation: Operation, position: int) -> tuple[int, ...]:
    """The axes of an operand along which thresholds and biases may vary: channels, or the heads of attention."""
    function = operation.function
    if function.startswith("conv"):
        return (-1 - int(function[-2]),)
    if operation.kind == "weighted":
        return (-2,) if function == "matmul" and position == 1 else (-1,)
    if function in ELEMENTWISE:
        smaller = min((operation.shapes[index] for index in operation.operands), key=lambda shape: shape.numel())
        varying = tuple(axis for axis in range(1 - len(smaller), 0) if smaller[axis] > 1)
        # One number for each token, as a gate has, is no number for each channel: those of tokens lie along the last axis.
        return varying if len(varying) == 1 and len(smaller) != 3 else (-1,)
    return (-3,)
