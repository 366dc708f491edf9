"""An evaluation on disk: JSON, CSV, and the curve as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..files import write_whole
from ..measure import Evaluation
from ..measure.curve import curve_svg


def write_evaluation(evaluation: Evaluation, folder: str | Path, title: str = "", command: Sequence[str] = ()) -> None:
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
