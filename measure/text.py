"""Results as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .against import MACHINES
from .audit import Audit, AuditRow
from .evaluation import EarlyExit, Evaluation, Score
from .kinds import Kind
from .leaks import Leak
from .outputs import WORDS
from .replay import Replay

COLUMNS = 80  # of a terminal


def table(head: list[str], rows: list[list[str]], columns: int | None = None) -> str:
    """Text in columns: words to the left, numbers to the right.

    Args:
        head: names of the columns.
        rows: their cells.
        columns: characters that a line may have: names in the first column lose their middle where they are too long.
    """
    if columns and rows:
        others = sum(2 + max(map(len, column)) for column in list(zip(head, *rows, strict=True))[1:])
        rows = [[_shortened(row[0], max(columns - others, 12)), *row[1:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    numeric = [all(cell[:1].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)).rstrip()
        for row in [head, *rows]
    )


def _shortened(name: str, length: int) -> str:
    """A name without its middle, if it is longer."""
    if len(name) <= length:
        return name
    front = (length - 1) // 3
    return f"{name[:front]}…{name[front + 1 - length :]}"


def points_table(result: Evaluation, labels: bool = True) -> str:
    """The curve for the terminal, a row for each timestep; with or without what labels say."""
    points, words = result.points, WORDS[result.output]
    dense = "ANN" if result.ann else "one pass on numbers"
    columns = {
        "T": [str(p.timestep) if p.latency == p.timestep else f"{p.timestep} per layer, {p.latency} in all" for p in points],
        f"{words.top1} %": [f"{p.top1:.1f}" for p in points if p.top1 is not None] if labels else [],
        words.mean_error: [f"{p.mean_error:.4g}" for p in points if p.mean_error is not None] if labels else [],
        f"{words.agreement} %": [f"{p.agreement:.1f}" for p in points if p.agreement is not None],
        words.similarity: [f"{p.similarity:.4f}" for p in points if p.similarity is not None],
        "relative error": [f"{p.relative_error:.2g}" for p in points if p.relative_error is not None],
        "spikes/neuron": [f"{p.spikes_per_neuron:.2f}" for p in points],
        f"energy, % of {dense}": [f"{100 * p.energy:.0f}" for p in points],
    }
    shown = {head: column for head, column in columns.items() if column}
    return table(list(shown), [list(row) for row in zip(*shown.values(), strict=True)])


def curve_table(result: Evaluation) -> str:
    """An evaluation for the terminal: a row for each timestep, early exits, what to do about it."""
    seen, of_ann, between = result.calibration["scored"], _told(result, result.ann), _told(result, result.substitute)
    lines = [
        f"ANN {of_ann} on {result.images} images" if of_ann else f"{result.images} images",
        f"substitute (which the spikes approach) {between}" if between else "",
        points_table(result),
        exit_line(result.exit) if result.exit else "",
        contest_table(result) if result.contest else "",
        *(f"largest error at the last step: {row.name} ({row.relative_error[-1]:.2g})" for row in result.modules[:1]),
        f"{seen} of these images are calibration images" if seen else "",
        *(f"note: {advice.finding}\n      try: {advice.action}" for advice in result.advice),
    ]
    return "\n".join(line for line in lines if line)


def _told(result: Evaluation, score: Score | None) -> str:
    """A score against the labels; nothing where there is none."""
    words = WORDS[result.output]
    if score is None or score.top1 is None:
        return f"{words.mean_error}: {score.mean_error:.4g}" if score and score.mean_error is not None else ""
    return f"{words.top1}: {score.top1:.1f} %"


def drop_line(result: Evaluation) -> str:
    """What the last point of the curve loses against the ANN."""
    last = result.points[-1]
    drop, words = result.lost(last), WORDS[result.output]
    if last.top1 is not None:
        return f"{words.top1} is {drop:.2f} points below the ANN's"
    if last.mean_error is not None:
        return f"the {words.mean_error} is {drop:.4g} above the ANN's"
    if last.agreement is not None:
        return f"{drop:.2f} % of the images have another nearest image than by the ANN"
    return f"the {words.similarity} with the ANN is {drop:.4g} below 1"


def contest_table(result: Evaluation) -> str:
    """Quantised ANNs beside the network's timesteps, and where it wins."""
    found, words = result.contest, WORDS[result.output]
    assert found is not None
    scored = [(f"ANN, {r.bits} bits", r.top1, r.agreement, r.energy_uj) for r in found.rivals]
    energies = list(zip(*found.energy_uj, strict=True))
    scored += [(f"SNN, T = {p.timestep}", p.top1, p.agreement, e) for p, e in zip(result.points, energies, strict=True)]
    labelled = all(top1 is not None for _, top1, _, _ in scored)
    head = [
        "against",
        *([f"{words.top1} %"] if labelled else []),
        f"{words.agreement} %",
        *(f"µJ, {name}" for name in MACHINES),
    ]
    rows = [
        [name, *([f"{top1:.1f}"] if labelled else []), f"{agreement:.1f}", *(f"{uj:.3g}" for uj in energy)]
        for name, top1, agreement, energy in scored
    ]
    return "\n".join([table(head, rows), *found.verdicts])


def exit_line(early: EarlyExit) -> str:
    """What early exits give, for the terminal."""
    beside, dense = (
        ("", "the energy of one pass on numbers")
        if early.agreement is None
        else (f", agreement {early.agreement:.1f} %", "the ANN's energy")
    )
    return (
        f"early exit at confidence {early.confidence:g}: top-1 {early.top1:.1f} %{beside}, {early.timesteps:.2f} timesteps, "
        f"{100 * early.energy:.0f} % of {dense}"
    )


def audit_table(result: Audit) -> str:
    """An audit for the terminal: the sentence, then a row for each operation, or for the same one in all blocks."""
    seen = f"seen on {result.images} images, T = {result.timesteps}"
    return f"{result.sentence()}\n{operations_table(result, result.rows)}\n{seen}"


def operations_table(result: Audit, shown: Iterable[AuditRow]) -> str:
    """Some operations of an audit, with their share of all that it found."""
    whole = sum(row.accumulates + row.multiplies for row in result.rows)
    rows = [
        [
            row.module or "(readout)",
            short(row.function),
            ", ".join(dict.fromkeys(row.operands)) + (f" x{row.copies}" if row.copies > 1 else ""),
            "yes" if row.addition_only else "no",
            f"{row.accumulates / 1e6:.2f}",
            f"{row.multiplies / 1e6:.2f}",
            f"{100 * (row.accumulates + row.multiplies) / whole:.1f}",
        ]
        for row in shown
    ]
    return table(["module", "operation", "operands", "adds", "M add", "M mul", "%"], rows, COLUMNS)


def leak_table(result: Leak) -> str:
    """Whether images of a batch leak into each other: a sentence, then what it was seen by at each timestep."""
    sentence = {
        "none": "No leak: the readout of an image is the same alone, ahead of another image and behind a third.",
        "found": f"LEAK: the readout of an image depends on its batch mates, by up to {result.largest:.2g}.",
        "untold": "Whether images of a batch leak into each other cannot be told: all have the same readout.",
    }[result.verdict]
    columns = zip(result.ahead, result.behind, result.images, strict=True)
    rows = [[str(t), *(f"{value:.2g}" for value in values)] for t, values in enumerate(columns, start=1)]
    head = ["T", "ahead of another", "behind a third", "between images alone"]
    return f"{sentence}\n{table(head, rows)}\nlargest difference of a logit to the image alone, in float64"


def kinds_line(kinds: Iterable[Kind]) -> str:
    """How many are of each kind: ``17 binary, 2 integer``."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())


def replay_line(result: Replay) -> str:
    """A replay for the terminal."""
    left = f"; computed as they are: {', '.join(result.left)}" if result.left else ""
    return (
        f"event by event: {result.additions / 1e6:.2f} M additions in {result.operations} operations; relative "
        f"difference of the logits {result.difference:.1g} (float64){left}"
    )


def parity_table(result: Evaluation, known: bool) -> str:
    """How a new conversion compares with its ANN on a few images, ``known`` from calibration or not; where it errs most."""
    worst = ", ".join(f"{module.name} ({module.relative_error[-1]:.2g})" for module in result.modules[:3])
    return (
        f"beside the ANN, on {result.images} {'of the calibration images' if known else 'other images'}:\n"
        f"{points_table(result, labels=False)}\n"
        f"largest errors at the last step: {worst}"
    )


def short(function: str) -> str:
    """What a function of torch is called in a table."""
    return function.removeprefix("scaled_dot_product_")
