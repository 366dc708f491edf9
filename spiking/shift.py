"""LayerNorm, softmax and GELU that multiply and divide no activations: shifts, additions, comparisons and small tables.

Three means suffice. A function of one variable is drawn by straight lines between knots (`Lines`), whose slopes are sums of at
most 3 signed powers of two: a product with a slope is 3 shifted copies. Inverse, inverse square root and power of two need
lines on one octave only, for the exponent of a floating-point (or the leading bit of an integer) number gives the rest as a
shift. And a product of two activations is taken by rounding one of them, the one that a whole row shares, to a sum of K signed
powers of two (`powers_of_two`): it is K shifted copies of the other. K is called ``terms`` here.

Constants (1/C, log2 e, gamma) are no activations. A fixed factor is a fixed few shifts, or folds into a weight: gamma and beta
into the linear layer that reads them, log2 e into the scale of the attention scores. They are plain products in this
simulation, as are the shifted copies.

Integer-only transformers came here before: I-BERT (Kim et al., ICML 2021) has polynomials of second degree and divisions, I-ViT
(Li and Gu, "Integer-only quantization for efficient vision transformer inference", ICCV 2023) the softmax by shifts, Shiftmax.

The modules are the stock ones, under their keys, with another ``forward``. Backpropagation uses the derivative of the exact
function (straight-through), which the value is near everywhere: that of the lines is coarser and is zero where K terms round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .floats import frexp, ldexp

TERMS = 3
"""K, the powers of two in a row's factor, unless given. With all three functions replaced and no training, DeiT-tiny picks the
class that it picked before for 97.0, 99.2 and 99.0 % of 500 ImageNet images with K = 2, 3, 4; with K = 1 it collapses."""

SHIFTED_OUT = 32
"""Softmax weights below 2^-32 of the largest are 0: shifted by as many places, nothing is left of a 32-bit number."""


@dataclass(frozen=True)
class Lines:
    """Straight lines between knots at ``start``, ``start + step``, ...; the outer lines go on beyond the knots.

    Args:
        start: place of the first knot.
        step: distance of knots, a power of two.
        knots: the values there, at least 2.
    """

    start: float
    step: float
    knots: tuple[float, ...]

    @classmethod
    def through(cls, function: Callable[[float], float], start: float, stop: float, step: float, unit: float) -> Lines:
        """Chords of a function from ``start`` to ``stop``, its values rounded to multiples of ``unit``."""
        places = (start + i * step for i in range(round((stop - start) / step) + 1))
        return cls(start, step, tuple(round(function(x) / unit) * unit for x in places))

    def __call__(self, x: Tensor) -> Tensor:
        """The lines at ``x``, any shape."""
        knots = x.new_tensor(self.knots)
        slopes = knots.diff() / self.step
        line = ((x - self.start) / self.step).floor().nan_to_num_().clamp_(0, len(slopes) - 1)
        index = line.long()
        return knots.take(index) + (x - (self.start + self.step * line)) * slopes.take(index)


SQUARE_EXCESS = 1 / 12
"""By how much the mean of `square` exceeds that of the squares if x is normally distributed, within 0.003. In all layers of
DeiT-tiny, which were not made for it, it is 0.082 or 0.083."""

# Relative errors within 0.45, 0.62 and 0.57 %, slopes of up to 2 signed powers of two; GELU within 0.006, slopes of up to 3.
# Two things err: the chords, by up to (step² / 8) max |f''|, and the knots, by up to half a unit. The units keep them alike.
INVERSE = Lines.through(lambda m: 1 / m, 1 / 2, 1, step=1 / 16, unit=2**-6)
INVERSE_ROOT = Lines.through(lambda m: m**-0.5, 1 / 4, 1, step=1 / 16, unit=2**-6)
POWER = Lines.through(lambda f: 2**f, 0, 1, step=1 / 4, unit=2**-5)  # knots 1, 1.1875, 1.40625, 1.6875, 2
GELU = Lines.through(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2, -4, 4, step=1 / 4, unit=2**-7)


def square(x: Tensor) -> Tensor:
    """x² by its chords between powers of two, 3·2^k |x| - 2·4^k for 2^k <= |x| < 2^(k+1): exact there, never too small, and at
    most 1/8 too large. Any shape."""
    mantissa, exponent = frexp(x.abs())  # of [1/2, 1), so k = exponent - 1; 0 and 0 of 0
    return ldexp((1.5 * mantissa - 0.5).clamp(min=0), 2 * exponent)


def inverse(x: Tensor) -> Tensor:
    """1 / x for x > 0, within 0.45 %; a shift of x shifts the result. Any shape."""
    mantissa, exponent = frexp(x)
    return ldexp(INVERSE(mantissa), -exponent)


def inverse_root(x: Tensor) -> Tensor:
    """1 / √x for x > 0, within 0.62 %; a shift of x by 2 places shifts the result by 1. Any shape."""
    mantissa, exponent = frexp(x)
    odd = exponent % 2
    return ldexp(INVERSE_ROOT(ldexp(mantissa, -odd)), -(exponent + odd) // 2)


def power(x: Tensor) -> Tensor:
    """2^x within 0.57 %: a line for the fraction of x, and a shift by its integer part. Any shape."""
    whole = x.floor()
    return ldexp(POWER(x - whole), whole)


def powers_of_two(x: Tensor, terms: int) -> Tensor:
    """x as a sum of ``terms`` signed powers of two, each the nearest to what the ones before it left. Any shape.

    A term leaves at most 1/3 of what it stands for, K terms at most 3 / (2·4^K + 1) of x: 1/3, 1/11, 1/43, 1/171.
    """
    total = torch.zeros_like(x)
    for _ in range(terms):
        rest = x - total
        mantissa, exponent = frexp(rest.abs())
        total = total + ldexp(rest.sign(), exponent - (mantissa < 0.75).int())
    return total


def _straight_through(value: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``value(x)`` with the gradient of ``exact(x)``."""
    with torch.no_grad():
        result = value(x)
    if not torch.is_grad_enabled():
        return result
    reference = exact(x)
    return result + (reference - reference.detach())


class ShiftLayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` by shifts and additions; the same arguments and keys. Input and output ``[..., C]``.

    The variance is the mean of `square`, less its mean excess. So the result is the exact one, direction and all, times a
    factor for each row. The factor is within 5 % of 1, times 1 ± 3 / (2·4^K + 1) for the K terms, if the values of a row crowd
    where `square` is worst; it is within 1 % or so, times the same, for rows of many values, whose excess is the mean one.
    Doubling x changes nothing but the share of eps.
    """

    terms: int = TERMS

    @classmethod
    def of(cls, norm: nn.LayerNorm, terms: int = TERMS) -> ShiftLayerNorm:
        """In the place of ``norm``, sharing its parameters."""
        new = cls(norm.normalized_shape, norm.eps, norm.elementwise_affine)
        new.weight, new.bias, new.terms = norm.weight, norm.bias, terms
        return new.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each row."""
        return _straight_through(self._shifted, super().forward, input)

    def _shifted(self, x: Tensor) -> Tensor:
        axes = tuple(range(-len(self.normalized_shape), 0))
        centred = x - x.mean(axes, keepdim=True)
        variance = square(centred).mean(axes, keepdim=True) / (1 + SQUARE_EXCESS)
        normal = centred * powers_of_two(inverse_root(variance + self.eps), self.terms)
        if self.weight is not None:
            normal = normal * self.weight
        return normal if self.bias is None else normal + self.bias


class ShiftSoftmax(nn.Softmax):
    """`torch.nn.Softmax` by shifts and additions. Any shape.

    exp(x) = 2^(x log2 e), after the maximum has been subtracted; its integer part is a shift, as in I-ViT's Shiftmax (which
    has one line for the fraction where `power` has four, and divides by the sum). The inverse of the sum is a factor for each
    row of K powers of two. A weight is the exact one times 1 ± 1.6 %, times 1 ± 3 / (2·4^K + 1) for the K terms, if it is above
    2^-32 of the row's largest, and 0 below; so is that of a score of -inf. A row of nothing else is NaN, as in the exact one.
    """

    dim: int

    def __init__(self, dim: int = -1, terms: int = TERMS) -> None:
        super().__init__(dim)
        self.terms = terms

    def forward(self, input: Tensor) -> Tensor:
        """Weights along ``dim`` that sum to nearly 1."""
        return _straight_through(self._shifted, super().forward, input)

    def _shifted(self, x: Tensor) -> Tensor:
        scores = (x - x.amax(self.dim, keepdim=True)) * math.log2(math.e)
        powers = power(scores.clamp(min=-SHIFTED_OUT)).masked_fill(scores < -SHIFTED_OUT, 0)
        return powers * powers_of_two(inverse(powers.sum(self.dim, keepdim=True)), self.terms)


class ShiftGELU(nn.GELU):
    """`torch.nn.GELU` by straight lines between knots every 1/4 on [-4, 4], 0 below and x above. Any shape.

    Within 0.006 of the exact function, and of its tanh form. It has nothing of the ShiftGELU of I-ViT, which multiplies x by
    a sigmoid.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The line at each value."""
        return _straight_through(GELU, super().forward, input)
