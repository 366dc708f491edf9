"""Sequences of tokens as maps, for layers that see neighbours.

A sequence ``[T * B, N, C]`` is a map of 1 by N; the transposition back and forth copies nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
