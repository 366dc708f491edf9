"""Exponents of floating-point numbers: by their bits and, in graphs for other runtimes, by operators that all of these have."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST, MOST = -126, 127
"""Exponents of normal numbers in float32."""
POWERS = torch.ldexp(torch.ones(MOST - LEAST + 1), torch.arange(LEAST, MOST + 1).float())
"""Of two, with these exponents."""


def octave(z: Tensor) -> Tensor:
    """The largest power of two up to z >= 0: what is left of a floating-point number without its mantissa. Any shape."""
    if torch.compiler.is_exporting():
        return torch.where(z > 0, _octave(z)[0], z)
    if z.dtype == torch.float64:
        return (z.view(torch.int64) & 0x7FF0000000000000).view(z.dtype)
    return (z.view(torch.int32) & 0x7F800000).view(z.dtype)


def frexp(x: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.frexp`: m of [1/2, 1) and e with x = m 2^e, of any shape; 0 and 0 of 0."""
    if torch.compiler.is_exporting():
        exponent = torch.where(x == 0, 0.0, _octave(x.abs())[1] + 1)
        return ldexp(x, -exponent), exponent
    return torch.frexp(x)


def ldexp(x: Tensor, places: Tensor) -> Tensor:
    """x 2^places, exactly; ``places`` holds whole numbers. Shapes broadcast."""
    if torch.compiler.is_exporting():
        half = (places / 2).floor()  # two steps reach further than one
        return x * _power_of_two(half) * _power_of_two(places - half)
    return torch.ldexp(x, places.to(x.dtype))


def copysign(x: Tensor, sign: Tensor) -> Tensor:
    """x >= 0 with the sign of another number. Shapes broadcast."""
    if torch.compiler.is_exporting():
        return torch.where(sign < 0, -x, x)
    return x.copysign(sign)


def _octave(z: Tensor) -> tuple[Tensor, Tensor]:
    """2^k and k = ⌊log2 z⌋ of z > 0. Runtimes may round logarithms to the wrong side of a whole number."""
    k = torch.where(z > 0, z, 1.0).log2().floor()
    power = _power_of_two(k)
    below, above = power > z, 2 * power <= z
    k = torch.where(below, k - 1, torch.where(above, k + 1, k))
    return torch.where(below, power / 2, torch.where(above, 2 * power, power)), k


def _power_of_two(k: Tensor) -> Tensor:
    """2^k for whole numbers, by a table: runtimes' own powers need not be exact."""
    index = (k.clamp(LEAST, MOST) - LEAST).long()
    return torch.nn.functional.embedding(index, POWERS[:, None]).squeeze(-1)
