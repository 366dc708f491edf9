"""Hadamard rotation: in place of channels with outliers, a neuron sees sums and differences of them, which are nearly Gaussian.

A quantiser of few levels loses least on values without heavy tails (QuaRot, NeurIPS 2024, for weights and activations of 4
bits). The rotation H is orthogonal and symmetric, so a receiver with weight W H reads rotated spikes as W reads plain ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import SpikingLinear, driven


class Hadamard(nn.Module):
    """Multiplies the last axis by the orthonormal Walsh-Hadamard matrix, ``[..., channels]`` to ``[..., channels]``.

    The matrix is block-diagonal, with blocks of the largest power of two that divides the number of channels. It is its own
    inverse. Computed as a matrix product here; as a butterfly it takes `additions`, and no multiplication but by a constant,
    which folds into thresholds and weights.

    Args:
        channels: size of the last axis.
        dtype: of the matrix.
    """

    matrix: Tensor

    def __init__(self, channels: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        matrix = torch.ones(1, 1, dtype=dtype)
        while channels % (2 * len(matrix)) == 0:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        self.register_buffer("matrix", matrix / math.sqrt(len(matrix)), persistent=False)

    @property
    def additions(self) -> int:
        """For each value, of a butterfly: the binary logarithm of the size of a block."""
        return len(self.matrix).bit_length() - 1

    def forward(self, x: Tensor) -> Tensor:
        """Rotate the last axis."""
        rotated: Tensor = x.unflatten(-1, (-1, len(self.matrix))) @ self.matrix.to(x.dtype)
        return rotated.flatten(-2)

    def extra_repr(self) -> str:
        """The size of a block, as ``print(model)`` shows it."""
        return f"block={len(self.matrix)}"


class RotatedLinear(SpikingLinear):
    """``W H m + b`` on the decoded value m of a neuron that sees H x. Input ``[T * B, ..., in]``, output ``[T * B, ..., out]``.

    ``weight`` is W H, so that nothing but spikes and weights meet.
    """

    rotation: Hadamard

    def forward(self, input: Tensor) -> Tensor:
        """Rotate, run the neuron, then the linear map."""
        return F.linear(self.neuron(self.rotation(input)), self.weight, self.bias)


def rotate_inputs(network: nn.Module) -> None:
    """Rotate what the neurons of all linear layers see, in place; the ANN's function stays the same."""
    for name, module in list(network.named_modules()):
        if type(module) is SpikingLinear:
            rotated = driven(RotatedLinear, module, module.neuron)
            dtype = torch.promote_types(module.weight.dtype, torch.float32)
            rotated.rotation = Hadamard(module.in_features, dtype).to(module.weight.device)
            rotated.weight = nn.Parameter(rotated.rotation(module.weight.detach()))
            network.set_submodule(name, rotated)
