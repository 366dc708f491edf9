"""Bounds of numeric options: what is beyond them is a slip of the hand, or would not end."""

from __future__ import annotations

import math
from typing import Any

import click

from vit2snn.reading import LONGEST, MOST_BITS, WIDEST


class Number(click.FloatRange):
    """A number within bounds, which is finite: click takes ``nan`` for a number that is within all bounds."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        """The number that is meant by a text."""
        number = float(super().convert(value, parameter, context))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", parameter, context)
        return number


TIMESTEPS = click.IntRange(1, LONGEST)
IMAGES = click.IntRange(1, 10**9)  # more than any data set has; all are taken where there are fewer
BATCH = click.IntRange(1, 2**16)  # of the smallest images, as many fill a GPU
WORKERS = click.IntRange(0, 256)  # threads, more than which no machine keeps busy
SEED = click.IntRange(0, 2**32 - 1)  # what NumPy takes
CLASSES = click.IntRange(1, 10**5)  # ImageNet-21k has a fifth of them
HEAD = click.IntRange(0, CLASSES.max)  # 0: the features in front of it
SIDE = click.IntRange(1, WIDEST)
ROUNDS = click.IntRange(1, 10**5)  # epochs or passes: each takes a second or more
GENERATIONS = click.IntRange(0, 10**5)  # the same
UPDATES = click.IntRange(1, 10**9)  # as many as a training of years makes
MANY = click.IntRange(2, 10**4)  # plans, or members of a population: each takes a second or more
MEMBER = click.IntRange(0, MANY.max)
BITS = click.IntRange(2, 16)  # of integers: a sign and a value; more is what float computes
WEIGHT_BITS = click.IntRange(2, MOST_BITS)
POSITIVE = Number(min=0, min_open=True)
NOT_NEGATIVE = Number(min=0)
PROBABILITY = Number(0, 1)


def bit_list(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int]:
    """``int8,int4`` as numbers of bits, each once, the most first."""
    try:
        bits = sorted({int(part.removeprefix("int")) for part in value.split(",")} if value else set(), reverse=True)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of integer types such as int8,int4") from None
    return [int(BITS.convert(count, parameter, context)) for count in bits]


def weight_bits(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """``int8`` as a number of bits, of weights that a byte holds."""
    if value is None:
        return None
    if not value.startswith("int") or not value[3:].isdecimal():
        raise click.BadParameter(f"{value!r} is not an integer type such as int8 or int4")
    return int(WEIGHT_BITS.convert(int(value[3:]), parameter, context))


def timestep_list(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """``1,2,4,8`` as a sorted list."""
    if value is None:
        return None
    try:
        steps = sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of timesteps such as 1,2,4,8") from None
    return [int(TIMESTEPS.convert(step, parameter, context)) for step in steps]
