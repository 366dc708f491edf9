"""Neurons with a membrane, for networks that are trained directly: IF, LIF, PLIF and the integer LIF.

One timestep is a pure function of input and state; the modules hold the constants. All see ``[T * B, ...]`` (see `time`).
The defaults are those of Spikformer and QKFormer: τ = 2 with decay of the input, threshold 1, hard reset to 0 which
gradients do not pass, a spike at h >= threshold, sigmoid surrogate with α = 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import gpu
from .alphabet import spread
from .dynamics import Dynamics
from .surrogate import Surrogate, spike
from .time import Neuron, Run
from .unrolled import unrolled

NeuronFactory = Callable[..., Neuron]
"""Makes a neuron; takes at least the keyword ``threshold``."""


class IF(Neuron):
    """Integrate and fire: h[t] = v[t-1] + x[t];  s[t] = [h[t] >= θ];  v[t] = h[t] after the reset. Output binary.

    Args:
        threshold: θ.
        v_reset: where a spike leaves the membrane (hard reset); None lowers it by θ (soft reset).
        detach_reset: gradients do not pass through the spike in the reset.
        surrogate: the derivative of the spike.
        v_start: the membrane potential at rest. Half a threshold makes the firing rate of a softly reset neuron the nearest one
            to its input, and not the next lower one (Bu et al., "Optimized Potential Initialization", AAAI 2022).
    """

    def __init__(
        self,
        threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = True,
        surrogate: Surrogate | None = None,
        v_start: float = 0.0,
    ) -> None:
        super().__init__()
        self.v_start = v_start
        self.threshold = threshold
        self.v_reset = v_reset
        self.detach_reset = detach_reset
        self.surrogate = surrogate or Surrogate()

    def dynamics(self) -> Dynamics:
        """What it does in a timestep."""
        return Dynamics(
            self.threshold, reset=self.v_reset, start=self.v_start, detached=self.detach_reset, surrogate=self.surrogate
        )

    def fire(self, h: Tensor) -> Tensor:
        """The spikes of the membrane, differentiable."""
        return spike(h - self.threshold, self.surrogate)

    def step(self, t: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One timestep: the state is v[t-1], the output s[t]. All ``[B, ...]``."""
        dynamics = self.dynamics()
        h = dynamics.charge(x, torch.full_like(x, self.v_start) if state is None else state)
        s = self.fire(h)
        return s, dynamics.settle(h, s.detach() if self.detach_reset else s)

    def advance(self, frames: Tensor, state: Any, run: Run) -> tuple[Tensor, Any]:
        """As in `Neuron`, in one pass over memory unless there is a gradient that `unrolled` does not know."""
        dynamics = self.dynamics()
        if torch.is_grad_enabled() and not dynamics.differentiable:
            return super().advance(frames, state, run)
        return unrolled(frames, state, dynamics, keeps=not run.last)

    def takes_half(self, frames: Tensor, run: Run) -> bool:
        """See `Neuron.takes_half`."""
        return not torch.is_grad_enabled() and gpu.can_compute(frames)

    def extra_repr(self) -> str:
        """The constants, as ``print(model)`` shows them."""
        return f"threshold={self.threshold}, reset={'soft' if self.v_reset is None else self.v_reset}"


class LIF(IF):
    """Leaky integrate and fire: h[t] = v[t-1] + (x[t] - v[t-1]) / τ, then as `IF`. Output binary.

    A constant input of θ or less never fires it: h approaches the input from below.

    Args:
        tau: τ, the time constant in timesteps, above 1.
        decay_input: whether the input is scaled by 1 / τ; without, h[t] = v[t-1] (1 - 1/τ) + x[t].
        constants: of `IF`.

    Raises:
        ValueError: τ is not above 1.
    """

    def __init__(self, tau: float = 2.0, decay_input: bool = True, **constants: Any) -> None:
        super().__init__(**constants)
        if not tau > 1:
            raise ValueError(f"the time constant of a leaky neuron is above 1 timestep, got tau={tau}")
        self.tau = tau
        self.decay_input = decay_input

    @property
    def leak(self) -> float | Tensor:
        """1 / τ."""
        return 1 / self.tau

    def dynamics(self) -> Dynamics:
        """As in `IF`, with the leak."""
        return super().dynamics()._replace(leak=self.leak, decays=self.decay_input)

    def extra_repr(self) -> str:
        """The constants, as ``print(model)`` shows them."""
        return f"tau={self.tau}, decay_input={self.decay_input}, {super().extra_repr()}"


class PLIF(LIF):
    """LIF with a learned leak, 1 / τ = σ(w) (Fang et al., "Incorporating Learnable Membrane Time Constant", ICCV 2021).

    Args:
        tau: τ at the start, above 1.
        decay_input: of `LIF`.
        constants: of `IF`.

    Raises:
        ValueError: τ is not above 1.
    """

    def __init__(self, tau: float = 2.0, decay_input: bool = True, **constants: Any) -> None:
        super().__init__(tau, decay_input, **constants)
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    @property
    def leak(self) -> Tensor:
        """σ(w)."""
        return self.w.sigmoid()


class TernaryLIF(LIF):
    """LIF with spikes of both signs: s[t] = 1 where h[t] >= θ, -1 where h[t] <= -θ, and a soft reset by s θ. Output ternary.

    Guo et al., "Ternary Spike: Learning Ternary Spikes for Spiking Neural Networks", AAAI 2024.

    Args:
        constants: of `LIF`.
    """

    def __init__(self, **constants: Any) -> None:
        super().__init__(v_reset=None, **constants)

    def dynamics(self) -> Dynamics:
        """As in `LIF`, with spikes of two signs."""
        return super().dynamics()._replace(sends="ternary")

    def fire(self, h: Tensor) -> Tensor:
        """The spikes of the membrane."""
        return spike(h - self.threshold, self.surrogate) - spike(-h - self.threshold, self.surrogate)


class _Round(torch.autograd.Function):
    """round(clip(u, 0, levels)), NaN where u is not finite, with gradient 1 within the range and 0 beyond."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward((u >= 0) & (u <= levels))
        # floor(u + 1/2): a tie fires, as in all neurons here; torch.round would send it to the even number.
        return spread((u + 0.5).floor().clamp(0, levels), u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


NO_SURROGATE = Surrogate()


class IntegerLIF(Neuron):
    """Integer LIF (I-LIF): it sends a number of spikes, 0 to ``levels``, and is lowered by as many thresholds.

    h[t] = β v[t-1] + x[t];  s[t] = round(clip(h[t] / θ, 0, levels));  v[t] = h[t] - θ s[t]. Output integer. Luo et al.,
    "Integer-Valued Training and Spike-Driven Inference Spiking Neural Network for High-performance and Energy-efficient
    Object Detection", ECCV 2024. At inference an integer is so many binary spikes: see `binary_spikes`.

    Args:
        levels: the most spikes in a timestep.
        threshold: θ, the membrane that one spike is worth.
        tau: β = 1 - 1 / τ is what the membrane keeps from one timestep to the next.

    Raises:
        ValueError: there is no level, or τ is not above 1.
    """

    def __init__(self, levels: int = 4, threshold: float = 1.0, tau: float = 4 / 3) -> None:
        super().__init__()
        if levels < 1 or not tau > 1:
            raise ValueError(f"an integer neuron has at least 1 level and tau above 1, got levels={levels}, tau={tau}")
        self.levels = levels
        self.threshold = threshold
        self.tau = tau

    def dynamics(self) -> Dynamics:
        """What it does in a timestep."""
        # Of the surrogate only the kernels' form of these constants makes use; dynamo wants to know where it is from.
        return Dynamics(self.threshold, 1 / self.tau, reset=None, sends="integer", levels=self.levels, surrogate=NO_SURROGATE)

    def step(self, t: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One timestep: the state is v[t-1], the output s[t]. All ``[B, ...]``."""
        dynamics = self.dynamics()
        h = x if state is None else dynamics.charge(x, state)
        s: Tensor = _Round.apply(h / self.threshold, self.levels)
        return s, dynamics.settle(h, s)

    def advance(self, frames: Tensor, state: Any, run: Run) -> tuple[Tensor, Any]:
        """As in `Neuron`, in one pass over memory where no gradient is needed."""
        if torch.is_grad_enabled():
            return super().advance(frames, state, run)
        return unrolled(frames, state, self.dynamics(), keeps=not run.last)

    def takes_half(self, frames: Tensor, run: Run) -> bool:
        """See `Neuron.takes_half`."""
        return not torch.is_grad_enabled() and gpu.can_compute(frames)

    def extra_repr(self) -> str:
        """The constants, as ``print(model)`` shows them."""
        return f"levels={self.levels}, threshold={self.threshold}, tau={self.tau}"


def binary_spikes(s: Tensor, levels: int) -> Tensor:
    """Integers 0..levels as ``levels`` binary spikes in succession, earliest first, whose sum they are.

    ``[...]`` to ``[levels, ...]``. What follows is linear, so a receiver that adds its weights once for each spike computes
    the same: W s = Σ_d W spikes[d].
    """
    order = torch.arange(levels, device=s.device).reshape(-1, *[1] * s.ndim)
    return (s > order).to(s.dtype)


NEURONS: dict[str, NeuronFactory] = {
    "if": IF, "lif": LIF, "plif": PLIF, "integer-lif": IntegerLIF, "ternary": TernaryLIF,
}  # fmt: skip
