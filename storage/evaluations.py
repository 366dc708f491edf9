"""An evaluation on disk: JSON, CSV, and the curve as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..measure import Evaluation
from ..measure.curve import curve_svg

JSON, CSV, CURVE = FILES = ("evaluation.json", "evaluation.csv", "curve.svg")


def write_evaluation(
    evaluation: Evaluation, folder: str | Path, title: str = "", command: Sequence[str] = (),
    read: Mapping[str, Any] | None = None, model: str = "",
) -> None:  # fmt: skip
    """Write ``evaluation.json``, ``evaluation.csv`` and ``curve.svg`` into a folder, each whole or not at all.

    Args:
        evaluation: the figures.
        folder: of the model, or another one.
        title: of the picture.
        command: what was typed to get the figures, for the record.
        read: what the images were read from, likewise; see `vit2snn.measure.report.schema.ReadPart`.
        model: what the model is called, likewise, where the folder does not tell.

    Raises:
        ArtifactError: a file cannot be written.
    """
    folder = Path(folder)
    told = {"command": list(command)} | ({"read": dict(read)} if read else {}) | ({"model": model} if model else {})
    document = evaluation.to_json() | told
    write_whole(folder / JSON, json.dumps(document, indent=2) + "\n")
    rows = io.StringIO()
    points = [point.to_json() for point in evaluation.points]
    writer = csv.DictWriter(rows, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    write_whole(folder / CSV, rows.getvalue())
    write_whole(folder / CURVE, curve_svg(evaluation, title))
