"""The ANN with integer weights and activations of few bits: what a spiking network has to beat.

A neuron that sends T binary spikes says one of T + 1 values, as a number of ⌈log2(T + 1)⌉ bits does (Shen et al., "Are
conventional SNNs really efficient?", CVPR 2024; Yan, Bai and Tang, "Reconsidering the energy efficiency of spiking neural
networks", arXiv 2409.08290). So the ANN is quantised where the spiking network has its neurons: whatever a weight or another
activation is multiplied with.

The rule is plain, and generous, so that no spiking network wins by it. All is symmetric, without an offset. Weights have a
scale for each output channel; what a linear layer reads has one for each token, other activations have one for each image.
These are taken from the values at hand, so that no calibration images are needed; where no value is negative, no sign is spent.
A scale is that of the least squared error (see `vit2snn.calibration.scales`). The image has 8 bits, as files have.
Biases, and functions between the layers, stay in float.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..calibration.scales import best_scale
from ..spiking import CodedNeuron
from .conversion import structure
from .model import SpikingModel
from .recipe import RECIPES

IMAGE_BITS = 8


class Quantiser(nn.Module):
    """Rounds what it gets to integers of so many bits, times a scale; see above. ``[B, ...]`` to the same shape.

    Args:
        bits: at least 2.
        by_token: a scale for each row of the last axis, instead of one for each image.
        rectified: negative values count as 0.
    """

    def __init__(self, bits: int, by_token: bool, rectified: bool = False) -> None:
        super().__init__()
        self.bits, self.by_token, self.rectified = bits, by_token, rectified

    def forward(self, x: Tensor) -> Tensor:
        """Round."""
        x = x.relu() if self.rectified else x
        return rounded(x, self.bits, (-1,) if self.by_token else tuple(range(1, x.ndim)))


def rounded(x: Tensor, bits: int, axes: tuple[int, ...]) -> Tensor:
    """``x`` as integers of so many bits, times a scale that the values along ``axes`` share."""
    least = torch.where(x.amin(axes, keepdim=True) < 0, -(2.0 ** (bits - 1) - 1), 0.0)
    most = torch.where(least < 0, 2.0 ** (bits - 1) - 1, 2.0**bits - 1)
    scale = best_scale(x, least, most, axes)
    return (x / scale).round().clamp(least, most) * scale


@torch.no_grad()
def quantised(snn: SpikingModel, bits: int) -> nn.Module:
    """The ANN of a converted network, quantised: images ``[B, C, H, W]`` to logits ``[B, classes]``; a copy.

    Raises:
        ValueError: there are fewer than 2 bits.
    """
    if bits < 2:
        raise ValueError(f"a symmetric number has at least 2 bits, got {bits}")
    ann, first = snn.original(), snn.plan.first
    if not any(isinstance(module, CodedNeuron) for module in ann.modules()):
        exact = structure(ann, RECIPES["exact"], snn.input_size)
        ann, first = exact.network, exact.plan.first
    for name, module in list(ann.named_modules()):
        if isinstance(module, CodedNeuron):
            owner = ann.get_submodule(name.rpartition(".")[0])
            sees_image = first is not None and name.startswith(f"{first}.")
            quantiser = Quantiser(max(bits, IMAGE_BITS) if sees_image else bits, isinstance(owner, nn.Linear), module.rectified)
            ann.set_submodule(name, quantiser)
            weight = getattr(owner, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim > 1:
                weight.copy_(rounded(weight, bits, tuple(range(1, weight.ndim))))
    return ann.eval()
