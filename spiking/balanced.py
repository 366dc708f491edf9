"""The membrane neuron of a converted network: balanced, which a neuron that is trained from the start is not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .time import HALF, FullPrecision, Neuron

TABLES = ("log_threshold", "offset", "height")


class Balanced(FullPrecision):
    """height · N(x / θ + b): a membrane neuron with a threshold and a resting current for each channel.

    It stands in front of a synaptic operation, or in place of a function that a neuron's threshold or saturation computes (a
    ReLU, a line clipped at 0 and 1). Its firing rate over time stands for what that function gives. The height is one number,
    which folds into whatever receives the spikes.

    Parameters, 1, 0 and 1 until calibration gives them values and shapes (see `vit2snn.calibration.balance`): ``log_threshold``
    and ``offset``, which broadcast against one image's input, and ``height``, a scalar.

    Args:
        neuron: N, with a threshold of 1.
        axes: the axes of one image's input, negative, along which thresholds and currents may vary ("channels"). None for the
            last one of sequences ``[B, N, C]``, and for heads ``[B, heads, N, C]`` or channels of maps ``[B, C, H, W]``.
        function: that it stands for.
    """

    def __init__(self, neuron: Neuron, axes: tuple[int, ...] | None = None, function: nn.Module | None = None) -> None:
        super().__init__()
        self.neuron = neuron
        self.axes = axes
        self.function = function or nn.Identity()
        self.interaction: nn.Module = nn.Identity()
        self.log_threshold = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))
        self.height = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """``[T * B, ...]`` to the same shape."""
        currents = (x.float() if x.dtype in HALF else x) * torch.exp(-self.log_threshold) + self.offset
        spikes: Tensor = self.interaction(self.neuron(currents))
        return (self.height * spikes).to(x.dtype)

    def no_weight_decay(self) -> set[str]:
        """As timm's models have it: tables of neurons are no weights."""
        return set(TABLES)

    def channels(self, x: Tensor) -> tuple[int, ...]:
        """The axes of ``x`` ``[B, ...]`` along which thresholds vary."""
        return self.axes or ((-1,) if x.ndim < 4 else (-3,))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The shapes of the tables are known only from calibration, so they are taken from the file.
        for name in TABLES:
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None and saved.shape != own.shape:
                setattr(self, name, nn.Parameter(torch.empty_like(saved, device=own.device), own.requires_grad))
        super()._load_from_state_dict(state_dict, prefix, *args)
