"""What coded neurons send, followed through the shadow of a network, which has shapes and no values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, Run, analog, running
from .signals import Signals, on_meta


class Shadow(Signals):
    """Follows one image through a copy of a network on torch's ``meta`` device.

    Args:
        network: a `SpikingModel`'s network; neither weights nor data are needed.
    """

    def __init__(self, network: nn.Module) -> None:
        self.shadow = on_meta(network)
        super().__init__(self.shadow)
        for name, module in self.shadow.named_modules():
            if isinstance(module, CodedNeuron):
                module.register_forward_hook(partial(self._send, name))

    @torch.no_grad()
    def show(self, input_size: tuple[int, ...]) -> Any:
        """What the network makes of an image of size ``(C, H, W)``."""
        images = torch.empty(1, *input_size, dtype=next(p.dtype for p in self.shadow.parameters()), device="meta")
        self.mark(images)
        with self, analog(), running(Run(batch=1)):  # in which a module that is called several times takes turns
            return self.shadow(images)

    def _send(self, name: str, neuron: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.view_as(output)  # a tensor of its own: the neuron may hand on what came in
        self.mark(output)
        self.sent(name, inputs, output)
        return output

    def sent(self, name: str, inputs: Sequence[Tensor], output: Tensor) -> None:
        """The neuron of that name has read the inputs and sent the output."""
        raise NotImplementedError
