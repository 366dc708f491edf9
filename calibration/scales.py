"""The scale of integers that stand for numbers: what an integer of 1 is worth."""

from __future__ import annotations

import torch
from torch import Tensor

CLIPPED = torch.linspace(0.2, 1, 17)
"""Shares of the largest magnitude that the largest integer may stand for: a scale that clips outliers rounds the rest finer."""


def best_scale(x: Tensor, least: Tensor | int, most: Tensor | int, axes: tuple[int, ...]) -> Tensor:
    """The scale of the least squared error, of integers from ``least`` to ``most``; the values along ``axes`` share it.

    Args:
        x: of any shape.
        least: broadcast to the scale.
        most: the same.
        axes: have length 1 in the result.
    """
    largest = x.abs().amax(axes, keepdim=True)
    best, error = torch.ones_like(largest), torch.full_like(largest, torch.inf)
    for share in CLIPPED.tolist():
        scale = (share * largest / most).clamp(min=torch.finfo(x.dtype).tiny)
        squares = (x - (x / scale).round().clamp(least, most) * scale).square().sum(axes, keepdim=True)
        best, error = torch.where(squares < error, scale, best), torch.minimum(squares, error)
    return best
