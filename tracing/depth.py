"""How many neurons are in a row: the latency of networks whose layers wait for those before them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, analog
from .calls import tensors_in
from .signals import Call, Signals, on_meta


def depth(network: nn.Module, input_size: tuple[int, ...]) -> int:
    """The coded neurons on the longest way from image to logits.

    Args:
        network: a `SpikingModel`'s network; neither weights nor data are needed.
        input_size: of one image, ``(C, H, W)``.
    """
    shadow = on_meta(network)
    follower = _Follower(shadow)
    images = torch.empty(1, *input_size, dtype=next(p.dtype for p in shadow.parameters()), device="meta")
    follower.mark(images)
    with follower, analog(), torch.no_grad():
        logits = shadow(images)
    return _stage(logits)


def latencies(network: nn.Module, input_size: tuple[int, ...]) -> Callable[[int], int]:
    """Timesteps from image to logits, of a run of T in which layers wait: T D for D neurons in a row, or T + D - 1."""
    in_a_row = depth(network, input_size)
    lags = any(isinstance(module, CodedNeuron) and module.lag for module in network.modules())
    return lambda timesteps: timesteps + in_a_row - 1 if lags else timesteps * in_a_row


def _stage(*tensors: Tensor) -> int:
    """Neurons on the longest way to any of these."""
    return max((getattr(tensor, "stage", 0) for tensor in tensors), default=0)


class _Follower(Signals):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        for module in network.modules():
            if isinstance(module, CodedNeuron):
                module.register_forward_hook(self._sends)

    def _sends(self, neuron: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.view_as(output)  # a tensor of its own: the neuron may hand on what came in
        self.mark(output)
        output.stage = _stage(*inputs) + 1  # type: ignore[attr-defined]
        return output

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        """What a call makes is as deep as what it reads."""
        for tensor in tensors_in([call.result]):
            tensor.stage = max(_stage(*call.operands), _stage(tensor))  # type: ignore[attr-defined]
