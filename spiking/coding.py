"""Codings in one formula.

A coded neuron sees a target x[t] (its input, computed from the values decoded so far), and keeps a decoded value m[t] that
its receivers read. Without spikes that would relax to a calibrated prior r; spikes s[t] make up for what it lacks:

    h[t] = a_t m[t-1] + (1 - a_t) r,    m[t] = h[t] + b_t (s[t] + c[t]),    s[t] = Q_t((x[t] - h[t]) / b_t),    m[-1] = r

Q_t rounds to the spike alphabet with the thresholds of step t; c[t] is a calibrated bias. Only s is sent: r and c are
constants that fold into the receiver, which is linear. With a = (t-1)/t and b = 1/t the decoded value is the prior and the mean
of the spikes, the argument of Q is the membrane potential of a soft-reset integrate-and-fire neuron, and expectation
compensation (ECMT, ACM MM 2024) falls out; with a = b = 1 only changes are sent (differential coding). With a = 1 and b = 1/t
changes are sent as well, and later spikes weigh less: the differential coding of DCGS (ICML 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import gpu
from .alphabet import Alphabet, Levels
from .layout import places, rows
from .native import MOST_STEPS, TABLES, Coded, Table, address, checked, compiling, kernels
from .operators import operator


class Coding(str, Enum):
    """How spikes add up to a decoded value."""

    RATE = "rate"
    DIFFERENTIAL = "differential"
    DECAYING = "decaying"

    def coefficients(self, t: int) -> tuple[float, float]:
        """(a_t, b_t) of the step with index t = 0, 1, ..."""
        return t / (t + 1) if self is Coding.RATE else 1.0, 1.0 if self is Coding.DIFFERENTIAL else 1 / (t + 1)

    def held(self, t: int, m: Tensor, prior: Tensor) -> Tensor:
        """h[t] of m[t-1]: what is decoded if nothing is sent. All shapes ``[B, ...]``."""
        return hold(m, prior, self.coefficients(t)[0])

    def innovation(self, t: int, x: Tensor, held: Tensor) -> Tensor:
        """The argument of Q_t: what the decoded value lacks, in units of one spike. All shapes ``[B, ...]``."""
        return innovation(x, held, self.coefficients(t)[1])

    def integrate(self, t: int, held: Tensor, spikes: list[Tensor], bias: Tensor | None = None) -> Tensor:
        """m[t] from h[t] and the spikes of step t."""
        return integrate(held, spikes, bias, self.coefficients(t)[1])


def hold(m: Tensor, prior: Tensor, a: float | Tensor) -> Tensor:
    """h of m[t-1] and r; a factor that is no number is a tensor, in a graph in which a host counts the timesteps."""
    return m if isinstance(a, float) and a == 1 else a * m + (1 - a) * prior


def innovation(x: Tensor, held: Tensor, b: float | Tensor) -> Tensor:
    """(x - h) / b."""
    return x - held if isinstance(b, float) and b == 1 else (x - held) * (1 / b)


def integrate(held: Tensor, spikes: list[Tensor], bias: Tensor | None, b: float | Tensor) -> Tensor:
    """h + b (s + c), of all spikes of a burst."""
    total = sum(spikes[1:], spikes[0])
    total = total if bias is None else total + bias
    return held + total if isinstance(b, float) and b == 1 else held + b * total


def emit(alphabet: Alphabet, u: Tensor, levels: Levels, count: int = 1) -> list[Tensor]:
    """The spikes of one step: up to ``count`` in a burst, each sent for what the ones before it left.

    Differentiable by the straight-through estimator: the gradient of the burst with respect to ``u`` is 1 within reach of
    the alphabet and 0 where it saturates.
    """
    with torch.no_grad():
        spikes = alphabet.burst(u, levels, count)
    if u.requires_grad and torch.is_grad_enabled():
        reach = count * levels.threshold
        lowest = -reach if alphabet.signed else torch.zeros_like(reach)
        if alphabet.centred:
            lowest, reach = -reach / 2, reach / 2
        passed = u.clamp(lowest, reach)
        spikes[0] = spikes[0] + (passed - passed.detach())
    return spikes


def _respond(
    x: Tensor, before: Tensor, a: float, b: float, alphabet: Alphabet, levels: Levels, prior: Tensor, bias: Tensor | None,
    count: int,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """m[t] and s[t]: the formula at the top."""
    held = hold(before, prior, a)
    spikes = emit(alphabet, innovation(x, held, b), levels, count)
    return integrate(held, spikes, bias, b), spikes


@dataclass(frozen=True)
class CodedStep:
    """What a coded neuron does in one timestep.

    Args:
        alphabet: of its spikes.
        coding: how they add up.
        t: the timestep.
        levels: that spikes are rounded to.
        prior: r.
        bias: c[t], if there is one.
        count: spikes in a burst.
    """

    alphabet: Alphabet
    coding: Coding
    t: int
    levels: Levels
    prior: Tensor
    bias: Tensor | None = None
    count: int = 1
    _prepared: dict[object, Constants] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, x: Tensor, before: Tensor | None, out: Tensor | None = None) -> Tensor:
        """m[t] of the target x[t] and m[t-1], all ``[B, ...]``; None for the prior. ``out`` may take m[t], and be m[t-1]."""
        return self._run(x, before, out, told=False)[0]

    def told(self, x: Tensor, before: Tensor | None, out: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The same, and the spikes."""
        return self._run(x, before, out, told=True)

    def _run(self, x: Tensor, before: Tensor | None, out: Tensor | None, told: bool) -> tuple[Tensor, list[Tensor]]:
        is_known = self._is_known(x, before)
        if is_known and kernels(x) is not None:
            return self._native(x, before, out, told)
        if is_known and gpu.can_compute(x):
            return self._on_gpu(x, before, out, told)
        decoded, spikes = self._in_graph(x, before, told) if is_known and compiling(x) else self.reference(x, before)
        return decoded if out is None else out.copy_(decoded), spikes

    def reference(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """What the kernel computes, in torch; differentiable."""
        a, b = self.coding.coefficients(self.t)
        constants = self.alphabet, self.levels, self.prior, self.bias, self.count
        return _respond(x, self.prior.expand(x.shape) if before is None else before, a, b, *constants)

    def _is_known(self, x: Tensor, before: Tensor | None) -> bool:
        return self.has_kernel and x.ndim > 1 and x.numel() > 0 and not self._is_graded(x, before)

    @property
    def has_kernel(self) -> bool:
        """Whether kernels know it: ratios of 2^(1/m), in float32. They know no gradients."""
        steps = self.levels.steps
        return steps is not None and len(steps) <= MOST_STEPS and self.prior.dtype == torch.float32

    def _is_graded(self, x: Tensor, before: Tensor | None) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or (before is not None and before.requires_grad))

    def _native(self, x: Tensor, before: Tensor | None, out: Tensor | None, told: bool) -> tuple[Tensor, list[Tensor]]:
        x = x if x.stride(-1) == 1 else x.contiguous()
        out = x.new_empty(x.shape) if out is None else out
        sent = x.new_empty(self.count, *x.shape) if told else None
        key = (x.shape[1:], x.stride()[1:])
        # Two threads may make the constants at once; both keep those that came first.
        constants = self._prepared.get(key) or self._prepared.setdefault(key, self._constants(*key))
        constants.respond(x, before, out, sent)
        return out, [] if sent is None else list(sent)

    def _on_gpu(self, x: Tensor, before: Tensor | None, out: Tensor | None, told: bool) -> tuple[Tensor, list[Tensor]]:
        out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
        sent = x.new_empty(1, self.count, *x.shape) if told else None
        self._alone.respond(x[None], before, out[None], sent=sent)
        return out, [] if sent is None else list(sent[0])

    @cached_property
    def _alone(self) -> gpu.Coded:
        return together([self])

    def _in_graph(self, x: Tensor, before: Tensor | None, told: bool) -> tuple[Tensor, list[Tensor]]:
        tables = self.prior, self.bias, self.levels.least, self.of_levels()
        constants = *self.coding.coefficients(self.t), self.count, self.alphabet.signed, told
        decoded, sent = _operator(x, before, *tables, *constants)
        return decoded, list(sent)

    def _constants(self, image: torch.Size, strides: tuple[int, ...]) -> Constants:
        tables = self.prior, self.bias, self.levels.least, *torch.broadcast_tensors(*self.of_levels())
        return Constants(image, strides, self.coding.coefficients(self.t), self.alphabet.signed, tables, self.count)

    def of_levels(self) -> list[Tensor]:
        """The tables of levels, as kernels want them."""
        return [self.levels.threshold, self.levels.gain, self.levels.floor, *(self.levels.steps or ())]


def together(steps: Sequence[CodedStep]) -> gpu.Coded:
    """Timesteps of one neuron that follow each other, as GPUs compute them: in one pass over memory."""
    alphabet, prior, count = steps[0].alphabet, steps[0].prior, steps[0].count
    tables = [step.bias for step in steps], [step.levels.least for step in steps], [step.of_levels() for step in steps]
    return gpu.Coded([step.coding.coefficients(step.t) for step in steps], alphabet.signed, prior, *tables, count)


class Constants:
    """What the kernels know of a timestep, for inputs of one shape and layout.

    Args:
        image: the shape of one image's input.
        strides: its layout.
        coefficients: (a_t, b_t).
        is_signed: whether spikes have a sign.
        tables: the prior, the bias, the least magnitude, and three or more tables of levels of one shape; None for absent ones.
        count: spikes in a burst.
    """

    def __init__(
        self, image: torch.Size, strides: tuple[int, ...], coefficients: tuple[float, float], is_signed: bool,
        tables: Sequence[Tensor | None], count: int = 1,
    ) -> None:  # fmt: skip
        (a, b), starts = coefficients, rows(image, strides)
        self._kept = [starts]  # what the kernel has pointers to
        filled = [Table() for _ in range(TABLES)]
        for index, table in enumerate(tables):
            if table is not None:
                values = table.contiguous()
                offset, per_value = places(values.shape, image)
                self._kept += [values, offset]
                filled[index] = Table(values.data_ptr(), offset.data_ptr(), per_value)
        steps = max(len(tables) - (TABLES - MOST_STEPS), 0)
        self.kernel = Coded(
            len(starts), image[-1], starts.data_ptr(), (Table * TABLES)(*filled), steps, count, is_signed, a, 1 - a, 1 / b, b
        )

    def respond(self, x: Tensor, before: Tensor | None, out: Tensor, sent: Tensor | None) -> None:
        """Put m[t] into ``out``, which is contiguous, and the spikes into ``sent`` ``[count, *x.shape]`` unless it is None."""
        before = before if before is None else before.contiguous()
        library = kernels(x)
        assert library is not None and out.is_contiguous()
        pointers = address(x), x.stride(0), address(before), address(out), address(sent)
        checked(library.coded_step(self.kernel, *pointers, len(x)))


def _step(
    x: Tensor, before: Tensor | None, prior: Tensor, bias: Tensor | None, least: Tensor, levels: list[Tensor],
    a: float, b: float, count: int, is_signed: bool, told: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """m[t] and the spikes ``[count, *x.shape]``, of which there are none unless they are ``told``."""
    decoded, sent = _like_step(x, count, is_signed, told)
    if gpu.can_compute(x):
        step = gpu.Coded([(a, b)], is_signed, prior, [bias], [least], [levels], count)
        step.respond(x[None], before, decoded[None], sent=sent[None] if told else None)
        return decoded, sent
    if kernels(x) is None:
        threshold, gain, floor, *steps = levels
        known = Levels(threshold, gain, floor, least, tuple(steps), ratio=threshold)  # which the steps make superfluous
        before = prior.expand(x.shape) if before is None else before
        found, spikes = _respond(x, before, a, b, Alphabet(1, signed=is_signed), known, prior, bias, count)
        return decoded.copy_(found), sent.copy_(torch.stack(spikes)) if told else sent
    x = x if x.stride(-1) == 1 else x.contiguous()
    tables = prior, bias, least, *torch.broadcast_tensors(*levels)
    constants = Constants(x.shape[1:], x.stride()[1:], (a, b), is_signed, tables, count)
    constants.respond(x, before, decoded, sent if told else None)
    return decoded, sent


def _like_step(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    count, _, told = arguments[-3:]
    return x.new_empty(x.shape), x.new_empty(count if told else 0, *x.shape)


_operator = operator(
    "coded_step(Tensor x, Tensor? before, Tensor prior, Tensor? bias, Tensor least, Tensor[] levels, "
    "float a, float b, int count, bool is_signed, bool told) -> (Tensor, Tensor)",
    _step,
    _like_step,
)
