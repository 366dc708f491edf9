"""The curve as a picture."""

from __future__ import annotations

import io

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .evaluation import Evaluation


def curve_svg(evaluation: Evaluation, title: str = "") -> str:
    """Accuracy against timesteps; beside an ANN also the agreement with it, and the ANN as a line."""
    t = [point.timestep for point in evaluation.points]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(t, [point.top1 for point in evaluation.points], "o-", label="SNN top-1")
    if evaluation.ann_top1 is not None:
        axes.axhline(evaluation.ann_top1, color="0.4", linestyle="--", label=f"ANN top-1 ({evaluation.ann_top1:.1f} %)")
        axes.plot(t, [point.agreement or 0.0 for point in evaluation.points], "s-", label="agreement with the ANN")
    axes.set(xlabel="timesteps T", ylabel=f"% of {evaluation.images} images", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    return drawing.getvalue()
