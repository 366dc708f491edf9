"""The tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from .artifact import Artifact
from .facts import dense, percent
from .markup import Child, element

NUMBER = {"class_": "number"}


def energies(artifacts: Sequence[Artifact]) -> Element:
    """Energy of an image in µJ at the last timestep, by each model, and what moving words may cost, for each artifact."""
    reference = "ANN" if artifacts[0].converted else dense(artifacts[0])
    several = len(artifacts) > 1
    names = [element("th", a.name, colspan="2", scope="colgroup", class_="number group") for a in artifacts] if several else []
    pairs = [(f"SNN, T = {artifact.evaluation['audit']['timesteps']}", reference) for artifact in artifacts]
    under = [element("th", text, scope="col", class_="number") for pair in pairs for text in pair]
    top = [element("tr", element("th", "µJ for an image", rowspan="2", scope="col"), *names), element("tr", *under)]
    head = top if several else [element("tr", element("th", "µJ for an image", scope="col"), *under)]
    costs = [artifact.evaluation["costs"] for artifact in artifacts]
    by_name = [{model["name"]: model for model in cost["energy"]} for cost in costs]
    common = [name for name in by_name[0] if all(name in models for models in by_name)]
    compute = [
        _row(name, [_micro(uj) for models in by_name for uj in (models[name]["snn_uj"][-1], models[name]["ann_uj"])])
        for name in common
    ]
    compute.append(_row("convention of the papers", [text for cost in costs for text in (_micro(cost["convention_uj"]), "—")]))
    estimates = [_range(cost["memory_estimate_uj"][which]) for cost in costs for which in ("snn", "ann")]
    width = str(1 + 2 * len(artifacts))
    return _scrolling(
        element(
            "table",
            element("thead", *head),
            element("tbody", _heading("compute only", width), *compute),
            element("tbody", _heading("memory traffic, an estimate", width), _row("least to most", estimates)),
        ),
        "energy by model",
    )


def _heading(text: str, width: str) -> Element:
    return element("tr", element("th", text, colspan=width, scope="rowgroup", class_="group"))


def _micro(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _range(ends: Sequence[float]) -> str:
    return f"{_micro(ends[0])} to {_micro(ends[1])}"


def contest(artifact: Artifact) -> Element:
    """Quantised ANNs, and the network at each timestep: scores, and energy in µJ by each machine."""
    found, words = artifact.evaluation["contest"], artifact.words
    heads = ["", f"{words.top1} %", f"{words.agreement} %", *(f"µJ, {name}" for name in found["machines"])]
    rows = [(f"ANN, {r['bits']} bits", r["top1"], r["agreement"], r["energy_uj"]) for r in found["rivals"]]
    energy = zip(*found["energy_uj"], strict=True)
    points = zip(artifact.evaluation["snn"], energy, strict=True)
    rows += [(f"SNN, T = {point['timestep']}", point["top1"], point["agreement"], uj) for point, uj in points]
    body = [_row(name, [*map(_percent, (top1, agreement)), *map(_micro, uj)]) for name, top1, agreement, uj in rows]
    head = element("tr", *(element("th", text, scope="col", **(NUMBER if text else {})) for text in heads))
    return _scrolling(element("table", element("thead", head), element("tbody", *body)), "against the quantised ANN")


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.1f}"


def modules(artifact: Artifact) -> Element:
    """Each neuron or block: sorted by a click on a heading; by error at first."""
    rows = artifact.evaluation["modules"]
    largest = max(row["relative_error"][-1] for row in rows) or 1.0
    heads = ["neuron or block", "error", "saturated", "dead", "spikes", "module"]
    head = [
        element(
            "th", element("button", text, type="button"), scope="col", aria_sort="none", **(NUMBER if 0 < index < 5 else {})
        )
        for index, text in enumerate(heads)
    ]
    head[heads.index("error")].set("aria-sort", "descending")
    body = [
        element(
            "tr",
            element("th", *_breakable(row["name"]), scope="row", class_="name"),
            _number(f"{error:#.2g}".rstrip("."), error, class_="number bar", style=f"--share: {error / largest:.4f}"),
            _share(_saturation(row["saturation"], artifact.synchronous)),
            _share(row["dead"]),
            _number(f"{row['spikes_per_neuron']:.2f}", row["spikes_per_neuron"]),
            element("td", *_breakable(row["module"]), class_="name"),
        )
        for row, error in ((row, row["relative_error"][-1]) for row in rows)
    ]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body), class_="sortable")
    search = element("input", type="search", placeholder="such as attn or blocks.3")
    tools = element(
        "div", element("label", "Filter ", search), element("output", f"{len(rows)} of {len(rows)}"), class_="tools"
    )
    return element("div", tools, _scrolling(table, "modules", tall=True), class_="modules")


def _saturation(shares: Sequence[float], synchronous: bool) -> float | None:
    """The largest of all timesteps; where each of them is one of another run, that of the whole run."""
    return max(shares[-1:] if synchronous else shares, default=None)


def _breakable(name: str) -> list[Child]:
    """A dotted name that a line may end in, behind a dot or underscore."""
    return [part for piece in re.split(r"(?<=[._])", name) for part in (piece, element("wbr"))][:-1]


def _number(text: str, value: float, class_: str = "number", **attributes: str) -> Element:
    return element("td", text, data_value=repr(value), class_=class_, **attributes)


def _share(value: float | None) -> Element:
    if value is None:
        return element("td", "—", data_value="", class_="number")
    return _number(percent(value) if value else "0", value)


def audit(artifact: Artifact) -> Element:
    """Each operation: what it reads, and whether it only adds."""
    rows = artifact.evaluation["audit"]["operations"]
    whole = sum(row["accumulates"] + row["multiplies"] for row in rows) or 1.0
    body = [
        element(
            "tr",
            element(
                "th", *_breakable(row["module"] or "(model)"), element("small", row["function"]), scope="row", class_="name"
            ),
            element("td", ", ".join(row["operands"]) or "—"),
            element("td", str(row["copies"]), class_="number"),
            element("td", "yes" if row["addition_only"] else "no", class_="yes" if row["addition_only"] else "no"),
            element("td", _count(row["accumulates"]), class_="number"),
            element("td", _count(row["multiplies"]), class_="number"),
            element("td", percent((row["accumulates"] + row["multiplies"]) / whole), class_="number"),
        )
        for row in rows
    ]
    heads = ["operation", "reads", "stored copies", "only adds", "additions", "multiplications", "share"]
    return _table(heads, body, numeric={2, 4, 5, 6}, label="audit")


def _count(value: float) -> str:
    return f"{value:,.0f}"


def plan(artifact: Artifact) -> Element:
    """What became of each module."""
    body = [
        element(
            "tr",
            element("th", *_breakable(row["name"]), scope="row", class_="name"),
            *(element("td", row[field]) for field in ("source", "result", "action")),
            element("td", f"{row['macs'] / 1e6:,.3f}", class_="number"),
        )
        for row in artifact.plan
    ]
    return _table(["module", "was", "is", "action", "MMAC"], body, numeric={4}, label="plan", tall=True)


def _row(head: Child, cells: Sequence[str]) -> Element:
    return element("tr", element("th", head, scope="row"), *(element("td", cell, class_="number") for cell in cells))


def _table(heads: Sequence[str], body: Sequence[Element], numeric: set[int], label: str, tall: bool = False) -> Element:
    head = [element("th", text, scope="col", **(NUMBER if index in numeric else {})) for index, text in enumerate(heads)]
    return _scrolling(element("table", element("thead", element("tr", *head)), element("tbody", *body)), label, tall)


def _scrolling(table: Element, label: str, tall: bool = False) -> Element:
    """A table in a box that scrolls, by keyboard too, so that the page does not."""
    return element("div", table, class_="scroll tall" if tall else "scroll", tabindex="0", role="region", aria_label=label)
