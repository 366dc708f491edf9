"""An evaluation on disk: JSON, CSV, and the curve as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..storage.files import write_whole
from .accuracy import Evaluation
from .scoring import Scores


def write_evaluation(evaluation: Evaluation | Scores, folder: str | Path, title: str = "", command: Sequence[str] = ()) -> None:
    """Write ``evaluation.json``, ``evaluation.csv`` and ``curve.svg`` into a folder, each whole or not at all.

    Args:
        evaluation: the figures.
        folder: of the model.
        title: of the picture.
        command: what was typed to get the figures, for the record.

    Raises:
        ArtifactError: a file cannot be written.
    """
    folder = Path(folder)
    write_whole(folder / "evaluation.json", json.dumps(evaluation.to_json() | {"command": list(command)}, indent=2) + "\n")
    rows = io.StringIO()
    writer = csv.DictWriter(rows, list(asdict(evaluation.points[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in evaluation.points)
    write_whole(folder / "evaluation.csv", rows.getvalue())
    write_whole(folder / "curve.svg", curve_svg(evaluation, title))


def curve_svg(evaluation: Evaluation | Scores, title: str = "") -> str:
    """Accuracy against timesteps; for a converted network also the agreement with the ANN, and the ANN as a line."""
    t = [point.timestep for point in evaluation.points]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(t, [point.top1 for point in evaluation.points], "o-", label="SNN top-1")
    if isinstance(evaluation, Evaluation):
        axes.axhline(evaluation.ann_top1, color="0.4", linestyle="--", label=f"ANN top-1 ({evaluation.ann_top1:.1f} %)")
        axes.plot(t, [point.agreement for point in evaluation.points], "s-", label="agreement with the ANN")
    axes.set(xlabel="timesteps T", ylabel=f"% of {evaluation.images} images", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    return drawing.getvalue()
