"""Results as text for a terminal."""

from __future__ import annotations

from .accuracy import Evaluation
from .scoring import Scores


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns aligned: text to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    numeric = [all(cell[:1].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)).rstrip()
        for row in [head, *rows]
    )


def curve_table(result: Evaluation) -> str:
    """An evaluation for the terminal, a row for each timestep."""
    rows = [
        [
            str(p.timestep),
            f"{p.top1:.1f}",
            f"{p.agreement:.1f}",
            f"{p.relative_error:.2g}",
            f"{p.spikes_per_neuron:.2f}",
        ]
        for p in result.points
    ]
    rows_text = table(["T", "top-1 %", "agreement %", "relative error", "spikes/neuron"], rows)
    worst = result.modules[0]
    return (
        f"ANN top-1: {result.ann_top1:.1f} % on {result.images} images\n{rows_text}\n"
        f"largest error at the last step: {worst.name} ({worst.relative_error[-1]:.2g})"
    )


def score_table(result: Scores) -> str:
    """The scores of a zoo model for the terminal, a row for each timestep."""
    rows = [[str(p.timestep), f"{p.top1:.1f}", f"{p.spikes_per_neuron:.2f}"] for p in result.points]
    return f"{table(['T', 'top-1 %', 'spikes/neuron'], rows)}\non {result.images} images"
