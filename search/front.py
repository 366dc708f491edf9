"""Which of many architectures are worth a look: those that no other beats in everything."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from .count import Figures
from .space import Architecture

OBJECTIVES = ("score", "parameters", "energy")
"""What a front trades off: a high score against few parameters and little energy."""

Array = npt.NDArray[np.float64]


def objectives(found: Sequence[Figures]) -> Array:
    """``[architectures, objectives]``, all of them the better the smaller."""
    return np.array([(-f.score, f.parameters, f.energy) for f in found], dtype=np.float64).reshape(-1, len(OBJECTIVES))


def is_on_front(points: Array) -> npt.NDArray[np.bool_]:
    """Whether no other point is at least as small in every column and smaller in one; ``[points]``."""
    on = np.ones(len(points), dtype=bool)
    for index, point in enumerate(points):
        as_small = (points <= point).all(1) & (points < point).any(1)
        on[index] = not as_small.any()
    return on


def front(found: Mapping[Architecture, Figures]) -> dict[Architecture, Figures]:
    """The architectures that no other dominates, from the least score to the greatest; one of several with equal figures."""
    different: dict[tuple[float, ...], Architecture] = {}
    for architecture, figures in found.items():
        different.setdefault((figures.score, figures.parameters, figures.energy), architecture)
    kept = list(different.values())
    on = is_on_front(objectives([found[architecture] for architecture in kept]))
    chosen = [architecture for architecture, is_on in zip(kept, on, strict=True) if is_on]
    return {architecture: found[architecture] for architecture in sorted(chosen, key=lambda a: found[a].score)}


def by_front(found: Sequence[Figures]) -> list[int]:
    """All indices, best first: front by front, in one those with the widest gaps around them (Deb et al., NSGA-II, 2002)."""
    points = objectives(found)
    left, order = np.arange(len(points)), list[int]()
    while len(left):
        on = is_on_front(points[left])
        members = left[on]
        gaps = _gaps(points[members])
        order += [int(members[i]) for i in np.argsort(-gaps, kind="stable")]
        left = left[~on]
    return order


def _gaps(points: Array) -> Array:
    """The crowding distance: the sum over columns of the gap between a point's neighbours, infinite at both ends."""
    gaps = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]] or 1.0
        gaps[order[[0, -1]]] = np.inf
        gaps[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return gaps


def front_svg(
    found: Mapping[Architecture, Figures], chosen: Mapping[Architecture, Figures], best: Architecture, title: str
) -> str:
    """All architectures that were compared, by parameters and score, those of the front in the colour of their energy."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    everything = list(found.values())
    axes.scatter([f.parameters / 1e6 for f in everything], [f.score for f in everything], s=6, color="0.8", label="compared")
    on = list(chosen.values())
    dots = axes.scatter(
        [f.parameters / 1e6 for f in on], [f.score for f in on], s=28, c=[f.energy * 1e3 for f in on], label="front", zorder=2
    )
    winner = found[best]
    axes.scatter(
        [winner.parameters / 1e6], [winner.score], s=110, facecolors="none", edgecolors="C3", label="best score", zorder=3
    )
    figure.colorbar(dots, label="estimated energy, mJ for an image")
    axes.set(xlabel="parameters, millions", ylabel="score: GMAC for an image, all timesteps", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    return drawing.getvalue()
