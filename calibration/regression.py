"""Sums over samples from which linear maps follow, without holding the samples.

All are sums, so those of two shards of the data add up to those of the whole: what is read is over all processes of the group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..spiking.shards import total


class NormalEquations:
    """Ridge regression of outputs on inputs, in closed form, from streamed sums.

    W, b minimise the (weighted) mean over samples of ‖W x + b - y‖² + λ v ‖W‖², where v is the mean variance of an input.
    """

    def __init__(self) -> None:
        self.count = self.x = self.y = self.xx = self.xy = torch.zeros((), dtype=torch.float64)

    def update(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """See inputs ``[samples, in]`` and outputs ``[samples, out]``, and the weights of the samples, ``[samples]``."""
        weighted = x if weight is None else x * weight[:, None]
        self.count = self.count + (len(x) if weight is None else weight.sum(dtype=torch.float64))
        # The products are summed in float32 within a batch, where a double product would cost ten times as much.
        self.x = self.x + weighted.sum(0, dtype=torch.float64)
        self.y = self.y + (y if weight is None else y * weight[:, None]).sum(0, dtype=torch.float64)
        self.xx, self.xy = self.xx + (weighted.T @ x).double(), self.xy + (weighted.T @ y).double()

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The map W ``[out, in]`` and b ``[out]``, float64.

        Args:
            ridge: λ, relative to the mean variance of an input.
        """
        count, x, y, xx, xy = map(total, (self.count, self.x, self.y, self.xx, self.xy))
        mx, my = x / count, y / count
        covariance = xx / count - torch.outer(mx, mx)
        cross = xy / count - torch.outer(mx, my)
        # Inputs that do not vary, as those of one image do, have a variance of rounding errors.
        least = 1e-9 * xx.diagonal().mean() / count + torch.finfo(torch.float32).tiny
        strength = ridge * torch.maximum(covariance.diagonal().mean(), least)
        regular = covariance + strength * torch.eye(len(mx), dtype=torch.float64, device=mx.device)
        weight = torch.linalg.solve(regular, cross).T
        return weight, my - weight @ mx
