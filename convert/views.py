"""Views of images: what a few of them show a network that is fitted to what an ANN makes of the same view."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST = 0.25
"""Least share of an image's area that a view shows."""
BLENDED = 0.5
"""Share of the views that are blended with another one."""
SQUEEZED = 4 / 3
"""Largest ratio by which a view is wider or higher than the image."""


def random_views(images: Tensor) -> Tensor:
    """A random part of each image, resized to the size of all of it, half of them mirrored, and half blended with another view.

    There are no labels that a view could belie: the ANN says of it what it is. A thousand images have a million blends.

    Args:
        images: ``[B, C, H, W]``.

    Returns:
        Of the same shape.
    """
    count = len(images)
    area = torch.empty(count).uniform_(SMALLEST, 1)
    aspect = torch.exp(torch.empty(count).uniform_(-math.log(SQUEEZED), math.log(SQUEEZED)))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    mirrored = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    across, down = ((torch.rand(count) * 2 - 1) * (1 - side) for side in (width, height))
    zero = torch.zeros(count)
    maps = torch.stack([width * mirrored, zero, across, zero, height, down], 1).unflatten(1, (2, 3)).to(images)
    grid = torch.nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
    views = torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    share = torch.where(torch.rand(count) < BLENDED, torch.rand(count), 1.0).to(images).reshape(-1, 1, 1, 1)
    return torch.lerp(views.roll(1, 0), views, share)
