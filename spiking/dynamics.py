"""What a neuron with a membrane does in a timestep, as a pure function of input and state."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .alphabet import spread
from .native import Membrane
from .surrogate import SHAPES, Surrogate

Sends = Literal["binary", "ternary", "integer"]
SENDS: tuple[Sends, ...] = ("binary", "ternary", "integer")  # as the kernels number them


class Dynamics(NamedTuple):
    """What a neuron does in a timestep: h[t] of v[t-1] and x[t], the spikes s[t] of h[t], and v[t] after them.

    Attributes:
        threshold: θ.
        leak: 1 / τ; 0 for none.
        decays: whether the input is scaled by 1 / τ too.
        reset: where a spike sets the membrane; None lowers it by θ.
        start: the membrane at rest.
        sends: [h >= θ], the same less [h <= -θ], or round(clip(h / θ, 0, levels)).
        levels: the most spikes of an integer neuron.
        detached: no gradient passes through the spike of the reset.
        surrogate: the derivative of a binary spike.
    """

    threshold: float
    leak: float | Tensor = 0.0
    decays: bool = False
    reset: float | None = 0.0
    start: float = 0.0
    sends: Sends = "binary"
    levels: int = 1
    detached: bool = True
    surrogate: Surrogate = Surrogate()

    @property
    def differentiable(self) -> bool:
        """Whether `unrolled` knows the gradient."""
        return self.sends == "binary" and not self.reset and not isinstance(self.leak, Tensor)

    def charge(self, x: Tensor, v: Tensor) -> Tensor:
        """h = v + (x - v) / τ, or h = v - v / τ + x where the input does not decay."""
        if self.decays:
            return v + (x - v) * self.leak
        return v - v * self.leak + x

    def fire(self, h: Tensor) -> Tensor:
        """The spikes, NaN where the membrane is not finite; without a gradient."""
        if self.sends == "integer":
            # floor(u + 1/2): a tie fires, as in all neurons here; torch.round would send it to the even number.
            return spread((h / self.threshold + 0.5).floor().clamp(0, self.levels), h)
        spikes = torch.ge(h, self.threshold, out=torch.empty_like(h, memory_format=torch.contiguous_format))  # for dynamo
        return spread(spikes - (h <= -self.threshold).to(h.dtype) if self.sends == "ternary" else spikes, h)

    def settle(self, h: Tensor, s: Tensor) -> Tensor:
        """v after the spikes."""
        return h - s * (self.threshold if self.reset is None else h - self.reset)

    @property
    def scalars(self) -> tuple[Any, ...]:
        """As operators want them; the leak is none that is learned."""
        return *self[:-1], self.surrogate.shape, self.surrogate.alpha

    @classmethod
    def of(cls, *scalars: Any) -> Dynamics:
        """That has these `scalars`."""
        return cls._make((*scalars[:-2], Surrogate(*scalars[-2:])))

    def constants(self) -> Membrane:
        """As the kernels want them."""
        reset, leak = self.reset or 0.0, float(self.leak)
        sends, surrogate = SENDS.index(self.sends), list(SHAPES).index(self.surrogate.shape)
        return Membrane(
            sends, self.decays, self.reset is not None, self.detached, surrogate,
            leak, self.threshold, self.start, reset, self.levels, self.surrogate.alpha,
        )  # fmt: skip
