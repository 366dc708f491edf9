"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ..convert import Plan
from ..convert.planning import PlannedModule
from ..tracing import Operation
from .accuracy import EarlyExit, Evaluation, Point
from .audit import Audit
from .replay import Replay
from .scoring import Scores

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


def points_table(points: Sequence[Point], accuracy: bool = True) -> str:
    """Points of a curve for the terminal, a row for each timestep; with or without the accuracy."""
    columns = {
        "T": [str(p.timestep) if p.latency == p.timestep else f"{p.timestep} per layer, {p.latency} in all" for p in points],
        "top-1 %": [f"{p.top1:.1f}" for p in points] if accuracy else [],
        "agreement %": [f"{p.agreement:.1f}" for p in points],
        "relative error": [f"{p.relative_error:.2g}" for p in points],
        "spikes/neuron": [f"{p.spikes_per_neuron:.2f}" for p in points],
        "energy, % of ANN": [f"{100 * p.energy:.0f}" for p in points],
    }
    shown = {head: column for head, column in columns.items() if column}
    return table(list(shown), [list(row) for row in zip(*shown.values(), strict=True)])


def curve_table(result: Evaluation) -> str:
    """An evaluation for the terminal: a row for each timestep, early exits, what to do about it."""
    worst, seen = result.modules[0], result.calibration["scored"]
    lines = [
        f"ANN top-1: {result.ann_top1:.1f} % on {result.images} images",
        points_table(result.points),
        exit_line(result.exit) if result.exit else "",
        f"largest error at the last step: {worst.name} ({worst.relative_error[-1]:.2g})",
        f"{seen} of these images are calibration images" if seen else "",
        *(f"note: {advice.finding}\n      try: {advice.action}" for advice in result.advice),
    ]
    return "\n".join(line for line in lines if line)


def exit_line(early: EarlyExit) -> str:
    """What early exits give, for the terminal."""
    return (
        f"early exit at confidence {early.confidence:g}: top-1 {early.top1:.1f} %, agreement {early.agreement:.1f} %, "
        f"{early.timesteps:.2f} timesteps, {100 * early.energy:.0f} % of the ANN's energy"
    )


def audit_table(result: Audit) -> str:
    """An audit for the terminal: the sentence, then a row for each operation, or for the same one in all blocks."""
    whole = sum(row.accumulates + row.multiplies for row in result.rows)
    rows = [
        [
            row.module or "(readout)",
            _short(row.function),
            ", ".join(dict.fromkeys(row.operands)) + (f" x{row.copies}" if row.copies > 1 else ""),
            "yes" if row.addition_only else "no",
            f"{row.accumulates / 1e6:.2f}",
            f"{row.multiplies / 1e6:.2f}",
            f"{100 * (row.accumulates + row.multiplies) / whole:.1f}",
        ]
        for row in result.rows
    ]
    head = ["module", "operation", "operands", "adds", "M add", "M mul", "%"]
    return f"{result.sentence()}\n{table(head, rows, COLUMNS)}\nseen on {result.images} images, T = {result.timesteps}"


def replay_line(result: Replay) -> str:
    """A replay for the terminal."""
    left = f"; computed as they are: {', '.join(result.left)}" if result.left else ""
    return (
        f"event by event: {result.additions / 1e6:.2f} M additions in {result.operations} operations; relative "
        f"difference of the logits {result.difference:.1g} (float64){left}"
    )


def parity_table(result: Evaluation) -> str:
    """How a new conversion compares with its ANN on calibration images, whose accuracy would flatter; where it errs most."""
    worst = ", ".join(f"{module.name} ({module.relative_error[-1]:.2g})" for module in result.modules[:3])
    return (
        f"beside the ANN, on {result.images} of the calibration images:\n{points_table(result.points, accuracy=False)}\n"
        f"largest errors at the last step: {worst}"
    )


def score_table(result: Scores) -> str:
    """The scores of a zoo model for the terminal, a row for each timestep."""
    rows = [[str(p.timestep), f"{p.top1:.1f}", f"{p.spikes_per_neuron:.2f}", f"{100 * p.energy:.0f}"] for p in result.points]
    head = ["T", "top-1 %", "spikes/neuron", "energy, % of one pass on numbers"]
    return f"{table(head, rows)}\non {result.images} images"


def plan_table(plan: Plan, timesteps: int) -> str:
    """A plan for the terminal: a row for each operation, what drives it, and what they cost together."""
    rows = [row for module in plan.modules for row in _plan_rows(module, plan.absorbed)]
    # Of a spiking branch, what takes the module's place is told in the column of its operations.
    analog = sum(module.macs for module in plan.modules if module.action != "spiking")
    cost = f"{plan.macs / 1e6:.2f} MMAC for one image and timestep"
    if analog:
        cost += f", {analog / 1e6:.2f} of them not driven by spikes"
    # In a product of decoded values the spikes of both operands add.
    coded = [module for module in plan.modules if module.action == "spiking" and not module.becomes]
    products = sum(call.macs for module in coded for call in module.calls if call.kind == "product")
    most = (plan.macs - analog + products) * timesteps
    bound = f"{most / 1e6:.1f} M accumulates in {timesteps} timesteps, if each neuron sent a spike in each"
    return f"{table(['module', 'type', 'operation', 'neurons on', 'MMAC'], rows, COLUMNS)}\n{cost}\n{bound}"


def _plan_rows(module: PlannedModule, absorbed: dict[str, str]) -> list[list[str]]:
    """One row for each synaptic operation that neurons drive, or one for what the module does otherwise."""
    synaptic = [call for call in module.calls if call.macs]
    if module.action == "spiking" and not module.becomes and synaptic:
        cells = [(_short(call.function), _operands(call), f"{call.macs / 1e6:.2f}") for call in synaptic]
        return [[module.name, module.type, *row] for row in cells]
    constant = all(call.kind == "scale" for call in module.calls) and not module.becomes
    driven = {
        "spiking": "its own spikes",
        "analog": "(constants)" if constant else "(analog)",
        "ignored": "(ignored)",
        "absorbed": f"(goes into {absorbed.get(module.name)})",
    }[module.action]
    operations = "+".join(_short(function) for function in dict.fromkeys(module.operations))
    return [[module.name, module.type, module.becomes or operations, driven, f"{module.macs / 1e6:.2f}"]]


def _short(function: str) -> str:
    return function.removeprefix("scaled_dot_product_")


def _operands(call: Operation) -> str:
    """What the neurons of an operation see."""
    if call.function == "scaled_dot_product_attention":
        return "q, k, softmax, v"
    return "input" if call.kind == "weighted" else f"{len(call.operands)} operands"
