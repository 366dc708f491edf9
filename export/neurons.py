"""Neurons of ordinary operators, with the timestep and the state as tensors: what a graph that leaves PyTorch is made of.

They compute what the neurons of `vit2snn.spiking` do, from the same tables and with the same functions. A timestep may be a
number, where a whole run is written out, or a tensor, where a host counts: then the state of timestep 0 counts for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..spiking import IF, CodedNeuron, IntegerLIF, Neuron, TemporalInteraction
from ..spiking.alphabet import Levels
from ..spiking.coding import Coding, hold, innovation, integrate
from ..spiking.dynamics import Dynamics
from ..spiking.time import Run

Timestep = int | Tensor
LADDER = ("threshold", "gain", "floor", "least", "ratio")
"""Tables of `vit2snn.spiking.alphabet.Levels`."""


class GraphNeuron(Neuron):
    """A `Neuron` whose timestep may be a tensor."""

    def advance(self, frames: Tensor, state: Any, run: Run) -> tuple[Tensor, Any]:
        """See `Neuron.advance`."""
        outputs = []
        for index in range(run.timesteps):
            output, state = self.step(run.elapsed + index, frames[index], state)
            outputs.append(output)
        return torch.stack(outputs), state


def begun(t: Timestep, rest: Tensor, state: Tensor | None) -> Tensor:
    """The state before timestep ``t``, which is ``rest`` at t = 0. Shapes broadcast."""
    if state is None:
        return rest
    return torch.where(torch.as_tensor(t) == 0, rest, state)


class GraphCoded(GraphNeuron):
    """A `CodedNeuron` of ordinary operators; the state is m[t-1], ``[B, ...]``."""

    prior: Tensor
    bias: Tensor | None

    def __init__(self, neuron: CodedNeuron) -> None:
        super().__init__()
        assert neuron.alphabet is not None
        self.alphabet, self.coding, self.count = neuron.alphabet, neuron.coding, neuron.spikes_per_step
        self.rectified, self.synchronous, self.surplus = neuron.rectified, bool(neuron.synchronous), neuron.surplus
        levels = [neuron.alphabet.rounding(neuron.ladder(t)) for t in range(len(neuron.threshold))]
        for name in LADDER:
            self.register_buffer(name, torch.stack([getattr(level, name) for level in levels]))
        known = [level.steps for level in levels]
        self.steps = None if None in known else max(len(steps or ()) for steps in known)
        for index in range(self.steps or 0):
            self.register_buffer(f"step{index}", torch.stack([_nth(steps, index, levels[0]) for steps in known]))
        self.register_buffer("prior", neuron.prior)
        silent = torch.zeros_like(neuron.bias[:1])
        self.register_buffer("bias", torch.cat([neuron.bias, silent]) if len(neuron.bias) else None)

    def unfold(self, x: Tensor, run: Run) -> Tensor:
        """See `Neuron.unfold`."""
        unfolded = super().unfold(x, run)
        return unfolded.relu() if self.rectified else unfolded

    def step(self, t: Timestep, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `CodedNeuron.step`."""
        if not self.synchronous:
            decoded = self._respond(t, x, begun(t, self.prior.expand(x.shape), state))
            return decoded, decoded
        assert isinstance(t, int)
        decoded = self.prior.expand(x.shape)
        for step in range(max(t + 1 + self.surplus, 1)):
            decoded = self._respond(step, x, decoded)
        return decoded, None

    def _respond(self, t: Timestep, x: Tensor, before: Tensor) -> Tensor:
        a, b = _coefficients(self.coding, t)
        steps = None if self.steps is None else tuple(_row(getattr(self, f"step{i}"), t) for i in range(self.steps))
        threshold, gain, floor, least, ratio = (_row(getattr(self, name), t) for name in LADDER)
        held = hold(before, self.prior, a)
        levels = Levels(threshold, gain, floor, least, steps, ratio)
        spikes = self.alphabet.burst(innovation(x, held, b), levels, self.count)
        return integrate(held, spikes, None if self.bias is None else _row(self.bias, t), b)


def _coefficients(coding: Coding, t: Timestep) -> tuple[float | Tensor, float | Tensor]:
    """See `Coding.coefficients`."""
    if isinstance(t, int):
        return coding.coefficients(t)
    count = t.float() + 1
    return (
        (count - 1) / count if coding is Coding.RATE else 1.0,
        1.0 if coding is Coding.DIFFERENTIAL else 1 / count,
    )


def _nth(steps: tuple[Tensor, ...] | None, index: int, like: Levels) -> Tensor:
    """A table of levels within an octave; infinite where a timestep has fewer of them."""
    return steps[index] if steps and index < len(steps) else torch.full_like(like.threshold, torch.inf)


def _row(table: Tensor, t: Timestep) -> Tensor:
    """The table of timestep ``t``; later ones have the last."""
    last = len(table) - 1
    if isinstance(t, int):
        return table[min(t, last)]
    return table.index_select(0, t.clamp(max=last).reshape(1)).squeeze(0)


class GraphMembrane(GraphNeuron):
    """A neuron with a membrane, of ordinary operators; the state is v[t-1], ``[B, ...]``."""

    def __init__(self, neuron: IF | IntegerLIF) -> None:
        super().__init__()
        dynamics = neuron.dynamics()
        self.dynamics = dynamics._replace(leak=float(dynamics.leak))

    def step(self, t: Timestep, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `IF.step`."""
        return fired(self.dynamics, x, begun(t, torch.full_like(x, self.dynamics.start), state))


def fired(dynamics: Dynamics, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """s[t] and v[t] of x[t] and v[t-1]."""
    h = dynamics.charge(x, v)
    s = dynamics.fire(h)
    return s, dynamics.settle(h, s)


class GraphInteraction(GraphNeuron):
    """A `TemporalInteraction` of ordinary operators."""

    def __init__(self, neuron: TemporalInteraction) -> None:
        super().__init__()
        self.alpha = neuron.alpha
        self.conv: nn.Module = neuron.conv
        self.inner, self.outer = neuron.inner.dynamics(), neuron.outer.dynamics()

    def step(self, t: Timestep, x: Tensor, state: tuple[Tensor, Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        """See `TemporalInteraction.step`."""
        if state is None:
            return x, (x, torch.zeros_like(x), torch.zeros_like(x))
        before, v_in, v_out = state
        mixed = self.conv(before.flatten(0, 1).transpose(1, 2)).transpose(1, 2).unflatten(0, before.shape[:2])
        past, v_in = fired(self.inner, mixed, begun(t, torch.zeros_like(x), v_in))
        now, v_out = fired(self.outer, self.alpha * past + (1 - self.alpha) * x, begun(t, torch.zeros_like(x), v_out))
        # The first timestep passes its input on, and its neurons rest.
        at_rest = [begun(t, torch.zeros_like(x), v) for v in (v_in, v_out)]
        now = begun(t, x, now)
        return now, (now, *at_rest)


def graph_neuron(name: str, neuron: Neuron) -> nn.Module:
    """The same neuron of ordinary operators.

    Raises:
        ExportError: nobody has said how; the message names the module.
    """
    if isinstance(neuron, CodedNeuron):
        if neuron.alphabet is None:
            return nn.ReLU() if neuron.rectified else nn.Identity()
        return GraphCoded(neuron)
    if isinstance(neuron, TemporalInteraction):
        return GraphInteraction(neuron)
    if isinstance(neuron, (IF, IntegerLIF)):
        return GraphMembrane(neuron)
    raise ExportError(f"module {name!r} is a {type(neuron).__name__}, of which no form of ordinary operators is known")
