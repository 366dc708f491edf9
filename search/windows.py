"""The constraints of a search: windows of parameters, multiply-accumulates, energy and latency."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import SearchError
from .count import Figures

UNITS: dict[str, Mapping[str, float]] = {
    "parameters": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
    "macs": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
    "energy": {"uJ": 1e-6, "mJ": 1e-3, "J": 1},
    "latency": {"us": 1e-6, "ms": 1e-3, "s": 1},
}
"""What can be constrained, fields of `Figures`, with the units of each."""


@dataclass(frozen=True)
class Window:
    """What a figure has to lie in.

    Attributes:
        figure: a field of `Figures`, and a key of `UNITS`.
        low: it is at least this.
        high: and at most this.
    """

    figure: str
    low: float
    high: float

    @classmethod
    def parse(cls, figure: str, text: str) -> Window:
        """``11M-12M``, or ``12M`` for at most so many; ``20mJ``, ``5ms-8ms``.

        Raises:
            SearchError: the text is no window, or its low end is above its high end.
        """
        units = UNITS[figure]
        number = rf"(\d+(?:\.\d+)?|\.\d+)\s*({'|'.join(unit for unit in units if unit)}){'?' if '' in units else ''}"
        match = re.fullmatch(rf"(?:{number}\s*-\s*)?{number}", text.strip())
        if match is None:
            known = ", ".join(unit for unit in units if unit)
            like = "11M-12M" if "M" in units else "5mJ-8mJ" if "mJ" in units else "5ms-8ms"
            raise SearchError(f"{text!r} is no window of {figure}", f"give LOW-HIGH or HIGH, as {like}; units are {known}")
        low, low_unit, high, high_unit = match.groups()
        window = cls(figure, float(low) * units[low_unit or ""] if low else 0.0, float(high) * units[high_unit or ""])
        if window.low > window.high:
            raise SearchError(f"the window {text!r} of {figure} begins above its end", "write LOW-HIGH")
        return window

    def holds(self, figures: Figures) -> bool:
        """Whether a figure lies within."""
        value: float | None = getattr(figures, self.figure)
        return value is not None and self.low <= value <= self.high

    def __str__(self) -> str:
        span = f"{shown(self.figure, self.low)}-{shown(self.figure, self.high)}"
        return f"{self.figure} within {span}" if self.low else f"{self.figure} of at most {shown(self.figure, self.high)}"


def shown(figure: str, value: float) -> str:
    """A figure in the largest unit in which it is at least 1."""
    units = UNITS[figure]
    fitting = [unit for unit, size in units.items() if value >= size]
    unit = max(fitting, key=units.__getitem__) if fitting else min(units, key=units.__getitem__)
    return f"{value / units[unit]:.4g}{unit}"


def check_reach(windows: Iterable[Window], corners: Iterable[Figures], space: str) -> None:
    """Refuse windows that hold nothing of a space, whatever else is asked for.

    Args:
        windows: constraints on what is counted.
        corners: figures of the space's `corners`.
        space: its name.

    Raises:
        SearchError: a window lies beside what there is; the message says what there is.
    """
    corners = list(corners)
    for window in windows:
        values = [getattr(figures, window.figure) for figures in corners]
        least, most = min(values), max(values)
        if window.high < least or window.low > most:
            raise SearchError(
                f"no architecture of {space!r} has {window}: the space has {shown(window.figure, least)} to "
                f"{shown(window.figure, most)}",
                "choose another window or another space",
            )


def excluded(windows: Iterable[Window], drawn: Iterable[Figures], space: str) -> SearchError:
    """That none of the drawn architectures is within all windows, and which window excludes how many of them."""
    drawn = list(drawn)
    told = []
    for window in windows:
        values = [getattr(figures, window.figure) for figures in drawn if getattr(figures, window.figure) is not None]
        kept = sum(window.low <= value <= window.high for value in values)
        span = (
            f"they have {shown(window.figure, min(values))} to {shown(window.figure, max(values))}" if values else "unmeasured"
        )
        told.append(f"{window}: {kept} of {len(values)} ({span})")
    return SearchError(
        f"none of {len(drawn)} architectures drawn from {space!r} is within all windows; alone, " + "; ".join(told),
        "widen the window that few are in",
    )
