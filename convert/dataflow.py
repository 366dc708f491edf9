"""What hangs on each neuron of a converted network: the operations that its spikes cause, and how many are in a row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, Hadamard, ShiftGELU, ShiftLayerNorm, ShiftSoftmax, share_clock
from ..spiking.calls import tensors_in
from .signals import Call, Signals, on_meta

VIEWS = {"transpose", "permute", "reshape", "view", "flatten", "unflatten", "contiguous", "squeeze", "unsqueeze", "expand"}
SHIFT_ONLY = (ShiftGELU, ShiftLayerNorm, ShiftSoftmax)
ANALOG_COST = 5
"""Multiply-accumulates charged for each value of a softmax, LayerNorm or activation function: about the operations of a softmax
(maximum, difference, exponential, sum, quotient)."""


@dataclass(frozen=True)
class Dataflow:
    """What flows where in one pass of a converted network, for one image.

    Attributes:
        fan_out: for each neuron, the accumulates that one spike causes in its receivers: multiply-accumulates of the operations
            that it drives over its number of outputs. In a product both operands count, because a spike of either one meets the
            decoded value of the other. At the border of a convolution with padding a spike has fewer.
        undriven: multiply-accumulates of synaptic operations that no neuron drives.
        analog: multiply-accumulates charged for nonlinear functions, `ANALOG_COST` for each value.
        additions: of Hadamard rotations.
        macs: of all synaptic operations.
        depth: neurons on the longest way from image to logits.
    """

    fan_out: dict[str, float]
    undriven: int
    analog: int
    additions: int
    macs: int
    depth: int


def dataflow(network: nn.Module, input_size: tuple[int, ...]) -> Dataflow:
    """Follow the signals of a converted network of coded neurons; neither weights nor data are needed.

    Args:
        network: a `SpikingModel`'s network.
        input_size: of one image, ``(C, H, W)``.
    """
    shadow = on_meta(network)
    share_clock(shadow)
    follower = _Follower(shadow)
    images = torch.empty(1, *input_size, dtype=next(p.dtype for p in shadow.parameters()), device="meta")
    follower.mark(images)
    with follower, torch.no_grad():
        logits = shadow(images)
    return Dataflow(
        fan_out=dict(follower.fan_out),
        undriven=follower.undriven,
        analog=ANALOG_COST * follower.analog,
        additions=follower.additions,
        macs=follower.macs,
        depth=follower.stage(logits),
    )


class _Follower(Signals):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.fan_out: dict[str, float] = defaultdict(float)
        self.undriven, self.analog, self.additions, self.macs = 0, 0, 0, 0
        self.sources: dict[int, str] = {}  # of tensors that are a neuron's output, its name
        self.stages: dict[int, int] = {}  # of tensors, the neurons on the longest way to them
        for name, module in network.named_modules():
            if isinstance(module, CodedNeuron):
                module.analog = True
                module.register_forward_hook(self._sends(name))
            elif isinstance(module, Hadamard):
                module.register_forward_hook(self._rotate)
                module.forward = torch.clone  # type: ignore[assignment]  # its matrix product is a butterfly of additions

    def stage(self, *tensors: Tensor) -> int:
        """Neurons on the longest way to any of these."""
        return max((self.stages.get(id(tensor), 0) for tensor in tensors), default=0)

    def _sends(self, name: str) -> Callable[..., Tensor]:
        def note(neuron: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output.view_as(output)  # a tensor of its own: the neuron may hand on what came in
            self.mark(output)
            self.stages[id(output)] = self.stage(*inputs) + 1
            self.sources[id(output)] = name
            return output

        return note

    def _rotate(self, rotation: Hadamard, inputs: Any, output: Tensor) -> None:
        self.additions += output.numel() * rotation.additions

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        """Follow signals from neuron to operation, and count."""
        made = tensors_in([call.result])
        for tensor in made:
            self.stages[id(tensor)] = max(self.stage(*call.operands), self.stage(tensor))
        if call.name in VIEWS and id(call.operands[0]) in self.sources:
            self.sources[id(made[0])] = self.sources[id(call.operands[0])]
        kind = call.kind(len(signals))
        if kind in ("weighted", "product"):
            driving = [operand for operand in call.operands if id(operand) in self.sources]
            self.macs += call.macs
            self.undriven += 0 if driving else call.macs
            for operand in driving:
                self.fan_out[self.sources[id(operand)]] += call.macs / operand.numel()
        elif kind == "analog" and not isinstance(self.stack[-1] if self.stack else None, (*SHIFT_ONLY, CodedNeuron)):
            self.analog += made[0].numel()
