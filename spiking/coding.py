"""Codings in one formula.

A coded neuron sees a target x[t] (its input, computed from the values decoded so far), and keeps a decoded value m[t] that
its receivers read. It codes the deviation d of x from a calibrated prior r:

    m[t] = r + d[t],    d[t] = a_t d[t-1] + b_t (s[t] + c[t]),    s[t] = Q_t((x[t] - r - a_t d[t-1]) / b_t),    d[0] = 0

Q_t rounds to the spike alphabet with the thresholds of step t; c[t] is a calibrated bias. Only s is sent: r and c are
constants that fold into the receiver, which is linear. With a = (t-1)/t and b = 1/t the decoded value is the mean of the
spikes, the argument of Q is the membrane potential of a soft-reset integrate-and-fire neuron, and expectation
compensation (ECMT, ACM MM 2024) falls out; with a = b = 1 only changes are sent (differential coding). With a = 1 and b = 1/t
changes are sent as well, and later spikes weigh less: the differential coding of DCGS (ICML 2025).
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from .alphabet import Alphabet, Ladder


class Coding(str, Enum):
    """How spikes add up to a decoded value."""

    RATE = "rate"
    DIFFERENTIAL = "differential"
    DECAYING = "decaying"

    def coefficients(self, t: int) -> tuple[float, float]:
        """(a_t, b_t) of the step with index t = 0, 1, ..."""
        return t / (t + 1) if self is Coding.RATE else 1.0, 1.0 if self is Coding.DIFFERENTIAL else 1 / (t + 1)


def innovation(coding: Coding, t: int, deviation: Tensor, d: Tensor) -> Tensor:
    """The argument of Q_t: what the decoded value lacks, in units of one spike. All shapes ``[B, ...]``."""
    if coding is Coding.DIFFERENTIAL:
        return deviation - d
    a, b = coding.coefficients(t)
    return (deviation - a * d) / b


def emit(alphabet: Alphabet, u: Tensor, ladder: Ladder, count: int = 1) -> list[Tensor]:
    """The spikes of one step: up to ``count`` in a burst, each sent for what the ones before it left.

    Differentiable by the straight-through estimator: the gradient of the burst with respect to ``u`` is 1 within reach of
    the alphabet and 0 where it saturates.
    """
    with torch.no_grad():
        spikes = [alphabet.quantize(u, ladder)]
        rest = u
        while len(spikes) < count:
            rest = rest - spikes[-1]
            spikes.append(alphabet.quantize(rest, ladder))
    if u.requires_grad and torch.is_grad_enabled():
        reach = count * ladder.threshold
        passed = u.clamp(-reach if alphabet.signed else torch.zeros_like(reach), reach)
        spikes[0] = spikes[0] + (passed - passed.detach())
    return spikes


def integrate(coding: Coding, t: int, d: Tensor, spikes: list[Tensor], bias: Tensor | float = 0.0) -> Tensor:
    """d[t] from d[t-1] and the spikes of step t."""
    total = sum(spikes[1:], spikes[0]) + bias
    if coding is Coding.DIFFERENTIAL:
        return d + total
    a, b = coding.coefficients(t)
    return a * d + b * total
