"""The perceptrons of substitutes: with ReLU, and with experts' gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..branches.base import BlockSize
from ..tokens import GridConv2d, to_map, to_tokens
from .base import Own

MLPS = ("relu", "emsp")


class SubstituteMlp(nn.Module):
    """W_2 relu(W_1 x): normed tokens ``[B, N, C]`` to the same shape, as `timm.layers.Mlp` with a ReLU.

    Args:
        size: of the block.
    """

    def __init__(self, size: BlockSize) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size.channels, size.hidden)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(size.hidden, size.channels)

    @torch.no_grad()
    def inherit(self, own: Own) -> None:
        """Take the maps of the ANN's perceptron."""
        for layer, name in ((self.fc1, "expand"), (self.fc2, "reduce")):
            layer.weight.copy_(own[name].weight)
            layer.bias.copy_(own[name].bias)

    @property
    def last(self) -> nn.Linear:
        """W_2."""
        return self.fc2

    def mixed(self, x: Tensor) -> Tensor:
        """What the last map reads, ``[B, N, hidden]``."""
        found: Tensor = self.act(self.fc1(x))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to the same shape."""
        out: Tensor = self.fc2(self.mixed(x))
        return out


class ExpertMlp(SubstituteMlp):
    """W_2 (r ⊙ h),  h = relu(W_1 x),  r = clip(DWConv3x3(h) + b, 0, 1): channels are gated by what lies around a patch.

    SEMM's EMSP (Zhou et al., NeurIPS 2024) has two halves of hidden channels, of which one gates the other. The ANN has no
    second half, so here the gate looks at the same channels. Each token before the patches is a grid of its own.
    """

    def __init__(self, size: BlockSize) -> None:
        super().__init__(size)
        self.router = GridConv2d(size.hidden, 3, size.grid, size.prefix, groups=size.hidden, bias=True)
        self.clip = nn.Hardtanh(0.0, 1.0)
        nn.init.zeros_(self.router.weight)
        nn.init.constant_(self.router.bias, 0.5)  # type: ignore[arg-type]

    def mixed(self, x: Tensor) -> Tensor:
        """Gated, ``[B, N, hidden]``."""
        hidden = super().mixed(x)
        gated: Tensor = to_tokens(self.clip(self.router(to_map(hidden)))) * hidden
        return gated


def substitute_mlp(kind: str, size: BlockSize) -> SubstituteMlp:
    """The perceptron of that name, one of `MLPS`."""
    return ExpertMlp(size) if kind == "emsp" else SubstituteMlp(size)
