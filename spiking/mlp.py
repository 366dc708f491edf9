"""The perceptron of spiking transformers."""

from __future__ import annotations

from torch import Tensor, nn

from .membrane import NeuronFactory
from .projection import ConvBN, SpikingProjection


class SpikingMLP(nn.Module):
    """BN(W2 N(BN(W1 x))): spikes or integers ``[T * B, C, H, W]`` to currents of the same shape, real-valued.

    A branch of a shortcut, whose neuron makes binary spikes of the currents. Zhou et al., "Spikformer", ICLR 2023.

    Args:
        dim: channels C.
        hidden: channels between the two layers.
        neuron: makes N.
    """

    def __init__(self, dim: int, hidden: int, neuron: NeuronFactory) -> None:
        super().__init__()
        self.expand = SpikingProjection(dim, hidden, neuron, bias=True)
        self.reduce = ConvBN(hidden, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to currents of the same shape."""
        currents: Tensor = self.reduce(self.expand(x))
        return currents
