"""How far a spike reaches: the additions that it causes."""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, analog
from .signals import VIEWS, Call, Signals, on_meta


@torch.no_grad()
def reach(network: nn.Module, input_size: tuple[int, ...]) -> dict[str, float]:
    """The accumulates that a spike of each coded neuron causes, by name, in the mean over its positions.

    They are the multiply-accumulates that its values take part in: of the weights that read them, and of the values of another
    signal, which are all taken to be there.

    Args:
        network: a `SpikingModel`'s network; neither weights nor data are needed.
        input_size: of one image, ``(C, H, W)``.
    """
    shadow = on_meta(network)
    follower = _Follower(shadow)
    images = torch.empty(1, *input_size, dtype=next(p.dtype for p in shadow.parameters()), device="meta")
    follower.mark(images)
    with follower, analog():
        shadow(images)
    return {name: follower.macs[name] / values for name, values in follower.values.items()}


class _Follower(Signals):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.values: Counter[str] = Counter()
        self.macs: Counter[str] = Counter()
        for name, module in network.named_modules():
            if isinstance(module, CodedNeuron):
                module.register_forward_hook(partial(self._sends, name))

    def _sends(self, name: str, neuron: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.view_as(output)  # a tensor of its own: the neuron may hand on what came in
        self.mark(output)
        self.values[name] += output.numel()
        output.sender = name  # type: ignore[attr-defined]
        return output

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        """A call reads spikes, or moves them on."""
        kind = call.kind(len(signals))
        for index in signals:
            sender = getattr(call.operands[index], "sender", None)
            if sender is None:
                continue
            if kind in ("weighted", "product"):
                self.macs[sender] += call.macs
            elif kind == "scale" or call.name in VIEWS:
                call.result.sender = sender
