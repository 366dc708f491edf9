"""Temporal interaction: the query of a timestep also depends on that of the timestep before."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .membrane import LIF
from .time import Neuron


class TemporalInteraction(Neuron):
    """TIM: q̃[0] = q[0];  q̃[t] = N_out(α N_in(conv(q̃[t-1])) + (1 - α) q[t]). Output binary.

    Wraps the query of any attention of this package (argument ``interaction``): it sees ``[T * B, heads, C / heads, tokens]``.
    The convolution (kernel 5) slides along the channels of a head and has the tokens as its channels, so the number of tokens
    is fixed. Shen et al., "TIM: An Efficient Temporal Interaction Module for Spiking Transformer", IJCAI 2024; the two neurons
    are in the authors' code only. There the threshold of N_out is 1 by mistake and nothing passes after t = 0; the thresholds
    here are those that the code means to set.

    Args:
        tokens: number of tokens.
        alpha: α, the weight of the timestep before.
        thresholds: of N_in and N_out.
    """

    def __init__(self, tokens: int, alpha: float = 0.5, thresholds: tuple[float, float] = (0.3, 0.5)) -> None:
        super().__init__()
        self.alpha = alpha
        self.conv = nn.Conv1d(tokens, tokens, 5, padding=2)
        self.inner, self.outer = (LIF(threshold=threshold) for threshold in thresholds)

    def step(self, t: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One timestep: ``x`` is q[t], the state holds q̃[t-1] and the two membranes. All ``[B, heads, C / heads, tokens]``."""
        if state is None:
            return x, (x, None, None)
        before, v_in, v_out = state
        mixed = self.conv(before.flatten(0, 1).transpose(1, 2)).transpose(1, 2).unflatten(0, before.shape[:2])
        past, v_in = self.inner.step(t, mixed, v_in)
        now, v_out = self.outer.step(t, self.alpha * past + (1 - self.alpha) * x, v_out)
        return now, (now, v_in, v_out)

    def extra_repr(self) -> str:
        """The constants, as ``print(model)`` shows them."""
        return f"alpha={self.alpha}"


class ByToken(nn.Module):
    """A module of ``[..., channels, tokens]`` on ``[..., tokens, channels]``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """There and back."""
        out: Tensor = self.module(x.transpose(-1, -2)).transpose(-1, -2)
        return out
