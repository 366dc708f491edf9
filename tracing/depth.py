"""How many neurons are in a row: the latency of networks whose layers wait for those before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..spiking import CodedNeuron
from .calls import tensors_in
from .shadow import Shadow
from .signals import Call


def depth(network: nn.Module, input_size: tuple[int, ...]) -> int:
    """The coded neurons on the longest way from image to logits.

    Args:
        network: a `SpikingModel`'s network; neither weights nor data are needed.
        input_size: of one image, ``(C, H, W)``.
    """
    return _followed(network, input_size)[1]


def _followed(network: nn.Module, input_size: tuple[int, ...]) -> tuple[_Follower, int]:
    """What was seen, and the stage of the logits."""
    follower = _Follower(network)
    return follower, _stage(follower.show(input_size))


def stages(network: nn.Module, input_size: tuple[int, ...]) -> list[list[str]]:
    """The names of the coded neurons at each place of the longest way from image to logits, as `depth` counts it.

    What is not on a way to the logits, but no further from the image, is among them.
    """
    follower, last = _followed(network, input_size)
    found: list[list[str]] = [[] for _ in range(last)]
    for name, stage in follower.stages.items():
        if stage <= last:
            found[stage - 1].append(name)
    return found


def latencies(network: nn.Module, input_size: tuple[int, ...]) -> Callable[[int], int]:
    """Timesteps from image to logits, of a run of T in which layers wait.

    For D neurons in a row that is T + D - 1 where each begins one timestep after the one before (T + 2 (D - 1) where it is
    two), and elsewhere the sum of their timesteps, which is T D where all take T.
    """
    coded = {name: module for name, module in network.named_modules() if isinstance(module, CodedNeuron)}
    rows = [[coded[name] for name in stage] for stage in stages(network, input_size)]
    lag = max((neuron.lag for neuron in coded.values()), default=0)
    if lag:
        return lambda timesteps: timesteps + lag * (len(rows) - 1)
    return lambda timesteps: sum(max(len(neuron.steps_by(timesteps - 1)) for neuron in stage) for stage in rows)


def _stage(*tensors: Tensor) -> int:
    """Neurons on the longest way to any of these."""
    return max((getattr(tensor, "stage", 0) for tensor in tensors), default=0)


class _Follower(Shadow):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.stages: dict[str, int] = {}

    def sent(self, name: str, inputs: Sequence[Tensor], output: Tensor) -> None:
        """What a neuron sends is a stage deeper than what it reads."""
        self.stages[name] = output.stage = _stage(*inputs) + 1  # type: ignore[attr-defined]

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        """What a call makes is as deep as what it reads."""
        for tensor in tensors_in([call.result]):
            tensor.stage = max(_stage(*call.operands), _stage(tensor))  # type: ignore[attr-defined]
