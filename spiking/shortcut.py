"""The two shortcuts of spiking transformers. Both take a branch that maps spikes to currents, and add the neuron."""

from __future__ import annotations

from torch import Tensor, nn

from .membrane import NeuronFactory


class SEWShortcut(nn.Module):
    """x + N(branch(x)), spike-element-wise ADD: spikes are added, so the stream is **integer** and not binary.

    Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS 2021; Spikformer, QKFormer and SEMM use it. The
    branch must take integers; a multiplication of weights by them is an addition repeated.

    Args:
        branch: maps ``[T * B, C, H, W]`` to currents of the same shape.
        neuron: makes N.
    """

    def __init__(self, branch: nn.Module, neuron: NeuronFactory) -> None:
        super().__init__()
        self.branch = branch
        self.neuron = neuron()

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to the same shape."""
        added: Tensor = x + self.neuron(self.branch(x))
        return added


class MembraneShortcut(nn.Module):
    """x + branch(N(x)): currents are added, so the stream is **real-valued** and every branch is fed by binary spikes.

    Hu et al., "Advancing Spiking Neural Networks toward Deep Residual Learning", TNNLS 2024; Spike-Driven Transformer,
    Spikingformer and AutoST use it.

    Args:
        branch: maps spikes ``[T * B, C, H, W]`` to currents of the same shape.
        neuron: makes N.
    """

    def __init__(self, branch: nn.Module, neuron: NeuronFactory) -> None:
        super().__init__()
        self.neuron = neuron()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, C, H, W]`` to the same shape."""
        added: Tensor = x + self.branch(self.neuron(x))
        return added
