"""Convolution with batch normalisation, alone and with the neuron behind it: the currents and the spikes of all blocks.

Signals are maps ``[T * B, C, H, W]``; a token is a position of the map, so a linear layer on tokens is a 1x1 convolution.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from .membrane import NeuronFactory

Pool = Literal["none", "before", "after"]


def max_pool() -> nn.MaxPool2d:
    """The pooling of all patch embeddings: maximum over 3x3, stride 2. On spikes it is an OR."""
    return nn.MaxPool2d(3, stride=2, padding=1)


class ConvBN(nn.Module):
    """BN(W x): spikes ``[T * B, in, H, W]`` to currents ``[T * B, out, H', W']`` (real-valued).

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: 1 for a linear map of tokens, or 3 with padding 1.
        stride: of the convolution.
        groups: of the convolution; ``inputs`` for a depthwise one.
        bias: whether the convolution has one (the normalisation makes it redundant).
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise; statistics are over timesteps, images and positions together."""
        normalised: Tensor = self.bn(self.conv(x))
        return normalised


class SpikingProjection(nn.Module):
    """N(BN(W x)): spikes or integers ``[T * B, in, H, W]`` to binary spikes ``[T * B, out, H', W']``.

    Args:
        inputs: channels in.
        outputs: channels out.
        neuron: makes the neuron N.
        kernel: see `ConvBN`.
        stride: see `ConvBN`.
        groups: see `ConvBN`.
        bias: see `ConvBN`.
        pool: maximum pooling with stride 2 ``"before"`` the neuron (of currents), ``"after"`` it (of spikes), or ``"none"``.
    """

    def __init__(
        self, inputs: int, outputs: int, neuron: NeuronFactory, kernel: int = 1, stride: int = 1, groups: int = 1,
        bias: bool = False, pool: Pool = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        self.project = ConvBN(inputs, outputs, kernel, stride, groups, bias)
        self.neuron = neuron()
        self.pool = pool
        self.max_pool = max_pool()

    def forward(self, x: Tensor) -> Tensor:
        """Current, neuron, and pooling where it is due."""
        current = self.project(x)
        if self.pool == "before":
            current = self.max_pool(current)
        spikes: Tensor = self.neuron(current)
        return self.max_pool(spikes) if self.pool == "after" else spikes
