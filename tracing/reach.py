"""How far a spike reaches: the additions that it causes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from .shadow import Shadow
from .signals import VIEWS, Call


def reach(network: nn.Module, input_size: tuple[int, ...]) -> dict[str, float]:
    """The accumulates that a spike of each coded neuron causes, by name, in the mean over its positions.

    They are the multiply-accumulates that its values take part in: of the weights that read them, and of the values of another
    signal, which are all taken to be there.

    Args:
        network: a `SpikingModel`'s network; neither weights nor data are needed.
        input_size: of one image, ``(C, H, W)``.
    """
    follower = _Follower(network)
    follower.show(input_size)
    return {name: follower.macs[name] / values for name, values in follower.values.items()}


class _Follower(Shadow):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.values: Counter[str] = Counter()
        self.macs: Counter[str] = Counter()

    def sent(self, name: str, inputs: Sequence[Tensor], output: Tensor) -> None:
        """A neuron sends values that are followed by its name."""
        self.values[name] += output.numel()
        output.sender = name  # type: ignore[attr-defined]

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
