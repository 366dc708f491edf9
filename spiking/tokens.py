"""Spiking branches for networks of token sequences: what takes the places of a ViT block's norms, attention and MLP.

A pre-norm block of timm, x + attn(norm(x)), is a spiking block with membrane shortcut once its norm ends in a neuron and its
``attn`` maps spikes to currents. The modules of this package work on maps ``[T * B, C, H, W]``; a sequence ``[T * B, N, C]`` is
a map of 1 by N, and the transposition back and forth copies nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .time import Neuron


class Balanced(nn.Module):
    """N(gain ⊙ x + offset): a neuron behind a product of spikes, with a threshold and a resting current for each channel.

    A gain g and an offset b are a threshold θ / g and a constant input b / g; no normalisation is here that could hold them.

    Args:
        neuron: N.
        shape: what gain and offset broadcast to, such as ``(heads, C / heads, 1)``.
    """

    def __init__(self, neuron: Neuron, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))
        self.offset = nn.Parameter(torch.zeros(shape))
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, *shape]``, broadcasting, to spikes."""
        spikes: Tensor = self.neuron(x * self.gain + self.offset)
        return spikes


class SpikingNorm(nn.Module):
    """N(norm(x)): a real-valued stream ``[T * B, N, C]`` to spikes of the same shape.

    Args:
        norm: a `torch.nn.BatchNorm2d` of C channels (foldable), or any norm over the last axis.
        neuron: N.
    """

    def __init__(self, norm: nn.Module, neuron: Neuron) -> None:
        super().__init__()
        self.norm = norm
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel, then fire."""
        currents = to_tokens(self.norm(to_map(x))) if isinstance(self.norm, nn.BatchNorm2d) else self.norm(x)
        spikes: Tensor = self.neuron(currents)
        return spikes


class TokenBranch(nn.Module):
    """A branch on maps, for sequences: spikes ``[T * B, N, C]`` to currents of the same shape, or to spikes by a last neuron.

    Args:
        branch: maps ``[T * B, C, 1, N]`` to the same shape.
        neuron: fires on what comes out, as the SEW shortcut wants it.
    """

    def __init__(self, branch: nn.Module, neuron: Neuron | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.neuron = neuron or nn.Identity()

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """``[T * B, N, C]`` to the same shape; timm's blocks hand over a mask, and spiking attention has none.

        Raises:
            ValueError: there is a mask.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("spiking attention knows no mask")
        return to_tokens(self.neuron(self.branch(to_map(x))))


class GridConv2d(nn.Conv2d):
    """A convolution over the tokens that lie on a grid; each token before them (class, registers) is a grid of its own.

    Input and output ``[T * B, C, 1, N]`` with N = ``prefix`` + H W. Other arguments are those of `torch.nn.Conv2d`, with an odd
    kernel and the padding that keeps the size.
    """

    def __init__(self, channels: int, kernel: int, grid: tuple[int, int], prefix: int, groups: int, bias: bool = False) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=bias)
        self.grid = grid
        self.prefix = prefix

    def forward(self, input: Tensor) -> Tensor:
        """``[T * B, C, 1, N]`` to the same shape."""
        patches = super().forward(input[..., self.prefix :].squeeze(2).unflatten(2, self.grid)).flatten(2).unsqueeze(2)
        if not self.prefix:
            return patches
        middle = self.kernel_size[0] // 2
        centre = self.weight[:, :, middle : middle + 1, middle : middle + 1]
        alone = nn.functional.conv2d(input[..., : self.prefix], centre, self.bias, groups=self.groups)
        return torch.cat([alone, patches], 3)


def to_map(x: Tensor) -> Tensor:
    """``[T * B, N, C]`` to ``[T * B, C, 1, N]``, a view.

    Not N by 1: of such maps torch cannot tell which memory format they have, and the backward pass of its batch normalisation
    on a CPU takes one for the other and gives wrong gradients (torch 2.15).
    """
    return x.transpose(1, 2).unsqueeze(2)


def to_tokens(x: Tensor) -> Tensor:
    """``[T * B, C, 1, N]`` to ``[T * B, N, C]``, a view."""
    return x.squeeze(2).transpose(1, 2)
