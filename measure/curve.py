"""The curve as a picture."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .evaluation import Evaluation
from .outputs import WORDS


def curve_svg(evaluation: Evaluation, title: str = "") -> str:
    """What labels and the ANN say of each timestep, and what labels say of the ANN as a line."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    if evaluation.output == "numbers":
        _draw(axes, evaluation, "mean_error", "similarity")
        axes.set(ylabel=f"of {evaluation.images} images")
    else:
        _draw(axes, evaluation, "top1", "agreement")  # a cosine has no scale with them
        axes.set(ylabel=f"% of {evaluation.images} images")
    axes.set(xlabel="timesteps T", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    return drawing.getvalue()


def _draw(axes: Axes, evaluation: Evaluation, by_labels: str, by_ann: str) -> None:
    """The lines of two figures of a `Point`, as far as they are known: one that labels tell, and one that the ANN does."""
    points, words = evaluation.points, WORDS[evaluation.output]
    t = [point.timestep for point in points]
    if getattr(points[0], by_labels) is not None:
        axes.plot(t, [getattr(point, by_labels) for point in points], "o-", label=f"SNN {getattr(words, by_labels)}")
    if evaluation.ann is None:
        return
    axes.plot(t, [getattr(point, by_ann) for point in points], "s-", label=f"{getattr(words, by_ann)} with the ANN")
    of_ann = getattr(evaluation.ann, by_labels)
    if of_ann is not None:
        axes.axhline(of_ann, color="0.4", linestyle="--", label=f"ANN {getattr(words, by_labels)} ({of_ann:.4g})")
