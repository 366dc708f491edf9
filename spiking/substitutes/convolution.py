"""Local mixing: a convolution of the value."""

from __future__ import annotations

from torch import Tensor, nn

from ..branches.base import BlockSize
from ..tokens import GridConv2d
from .base import Read, Term, term


@term("conv")
class ValueConvolution(Term):
    """A depthwise 3x3 convolution of the value on the grid of patches; each token before the patches is a grid of its own.

    This is ours, to stand beside a Q-K gate, which mixes no neighbours.
    """

    mixes_tokens = False

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        self.conv = GridConv2d(size.channels, 3, size.grid, size.prefix, groups=size.channels, bias=True)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, normed: Tensor, read: Read) -> Tensor:
        """Convolve the value."""
        value = read["value"]
        channels = value.transpose(-1, -2).flatten(1, 2).unsqueeze(2)  # [B, C, 1, N]
        near: Tensor = self.conv(channels).squeeze(2).unflatten(1, (value.shape[1], -1)).transpose(-1, -2)
        return near
