"""Synaptic operations as torch dispatches them: a count that knows nothing of how a network was converted.

What `vit2snn.tracing.record` finds by looking at the functions that modules call is found again here one level below, where
everything has become a matrix product or a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..spiking import CodedNeuron, SpikingNetwork, analog, evaluating, simulate
from ..tracing.calls import tensors_in

FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "mv": (0, 1), "convolution": (0, 1), "mul": (0, 1)}
MOVES = {
    "view", "_unsafe_view", "reshape", "transpose", "t", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
    "clone", "_to_copy", "alias", "detach", "unbind", "split", "split_with_sizes", "cat", "stack", "constant_pad_nd",
    "im2col", "unfold", "roll", "flip", "repeat", "index", "as_strided", "mul", "div", "pixel_unshuffle", "_reshape_alias",
    "copy_", "zeros_like",
}  # fmt: skip
"""What may lie between a neuron and its receiver: the values stay those of spikes, up to constants."""


@dataclass(frozen=True)
class Dispatched:
    """One operation in which something that depends on the image is multiplied.

    Attributes:
        function: of ATen.
        module: the innermost module that was running.
        macs: multiply-accumulates for one image.
        driven: whether every operand that depends on the image comes from a neuron.
    """

    function: str
    module: str
    macs: int
    driven: bool

    @property
    def elementwise(self) -> bool:
        """Whether it is a product of two signals element by element, such as a gate, or a part of a normalisation."""
        return self.function == "mul"


@torch.no_grad()
def dispatched(snn: SpikingNetwork, image: Tensor) -> list[Dispatched]:
    """Every multiplication of signals in one pass of a converted network with analog neurons.

    Args:
        snn: the converted network.
        image: ``[C, H, W]``.
    """
    watcher = _Watcher(snn.network)
    try:
        with evaluating(snn), analog(), sdpa_kernel(SDPBackend.MATH), watcher:
            simulate(snn.network, watcher.shown(image.unsqueeze(0)), 1)
    finally:
        watcher.remove()
    return watcher.found


class _Watcher(TorchDispatchMode):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Dispatched] = []
        self.signals: set[int] = set()
        self.decoded: set[int] = set()
        self.held: list[Tensor] = []  # so that no id is used twice
        self.stack = [""]
        self.handles = []
        for name, module in network.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._enter(name)))
            self.handles.append(module.register_forward_hook(self._leave))

    def remove(self) -> None:
        """Take the hooks off the network."""
        for handle in self.handles:
            handle.remove()

    def shown(self, images: Tensor) -> Tensor:
        """``images``, from now on known as the signal."""
        self.held.append(images)
        self.signals.add(id(images))
        return images

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda module, inputs: self.stack.append(name)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        self.stack.pop()
        if isinstance(module, CodedNeuron):
            output = output.view_as(output)  # the neuron may hand on what came in
            self.decoded.add(id(output))
        return output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        operands, made = tensors_in(args), tensors_in([result])
        signals = [operand for operand in operands if id(operand) in self.signals]
        self.held += made
        if signals and not (name == "native_layer_norm" and math.prod(args[1]) == 1):  # of one value it is the bias, always
            self.signals |= {id(tensor) for tensor in made}
            if name in MOVES and all(id(operand) in self.decoded for operand in signals):
                self.decoded |= {id(tensor) for tensor in made}
            self._count(name, args, made)
        return result

    def _count(self, name: str, args: tuple[Any, ...], made: list[Tensor]) -> None:
        factors = [args[index] for index in FACTORS.get(name, ()) if isinstance(args[index], Tensor)]
        signals = [factor for factor in factors if id(factor) in self.signals]
        if len(signals) > (name == "mul"):
            if name == "mul":
                macs = made[0].numel()
            elif name == "convolution":
                macs = (factors[0] if args[6] else made[0]).numel() * factors[1][0].numel()
            else:
                macs = made[0].numel() * factors[0].shape[-1]
            driven = all(id(signal) in self.decoded for signal in signals)
            self.found.append(Dispatched(name, self.stack[-1], macs, driven))
