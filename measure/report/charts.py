"""The charts, as plotly figures whose colours are names of CSS variables: ``page.css`` says what they look like in a theme."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .artifact import Artifact
from .facts import dense, readout, short

COLOURS = 6  # --series-0 to --series-5
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "hexagon", "cross")
HEAT = [[0.0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1.0, "var(--heat-2)"]]
WORST = 5


def curves(artifacts: Sequence[Artifact]) -> go.Figure:
    """Accuracy and, below it, what compares with the ANN against timesteps, of all artifacts."""
    shown = _shown(artifacts[0])
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (field, (title, figures, unit)) in enumerate(shown.items(), start=1):
        for index, artifact in enumerate(artifacts):
            points = artifact.points
            trace = go.Scatter(
                x=[point["timestep"] for point in points],
                y=[point[field] for point in points],
                customdata=[readout(point) for point in points],
                hovertemplate=f"%{{meta}}<br>T = %{{customdata}}<br>{title} %{{y:{figures}}}{unit}<extra></extra>",
                mode="lines+markers",
                showlegend=row == 1,
                **_series(index, artifact),
            )
            figure.add_trace(trace, row, 1)
        figure.update_yaxes(
            title_text=title + (", %" if unit else ""), autorangeoptions_include=_around(artifacts, field), row=row, col=1
        )
    times = _times(point["timestep"] for artifact in artifacts for point in artifact.points)
    if artifacts[0].converted and "top1" in shown:
        for accuracy in dict.fromkeys(artifact.of_ann for artifact in artifacts):
            figure.add_trace(_ann_line(times, accuracy), 1, 1)
    _dress(figure, 180 + 180 * len(shown))
    figure.update_xaxes(_time_axis(times) | {"title_text": ""})
    figure.update_xaxes(title_text="timesteps T", row=len(shown), col=1)
    return figure


def _shown(artifact: Artifact) -> dict[str, tuple[str, str, str]]:
    """The figures of a point that are drawn against timesteps: what they are called, their digits, and their unit."""
    words, percent = artifact.words, (".2f", " %")
    found = {
        "top1": (words.top1, *percent),
        "agreement": (words.agreement, *percent),
        "similarity": (words.similarity, ".4f", ""),
    }
    return {field: told for field, told in found.items() if artifact.points[0].get(field) is not None}


def energy_and_accuracy(artifacts: Sequence[Artifact]) -> go.Figure:
    """Accuracy (agreement, without labels) against energy: each timestep, early exits as stars, the ANN, the Pareto front."""
    field = artifacts[0].decisive
    title = getattr(artifacts[0].words, field)
    figure = go.Figure()
    exits = [_early_exit(index, artifact) for index, artifact in enumerate(artifacts) if artifact.evaluation.get("exit")]
    for index, artifact in enumerate(artifacts):
        points = artifact.points
        figure.add_scatter(
            x=[100 * point["energy"] for point in points],
            y=[point[field] for point in points],
            customdata=[readout(point) for point in points],
            text=["" if 0 < i < len(points) - 1 else f"T={point['timestep']}" for i, point in enumerate(points)],
            textposition=["top right"] + ["top center"] * (len(points) - 1),
            hovertemplate=f"%{{meta}}<br>T = %{{customdata}}<br>energy %{{x:.1f}} %<br>{title} %{{y:.2f}} %<extra></extra>",
            mode="lines+markers" if len(artifacts) > 1 else "lines+markers+text",  # texts of several would overlap
            **_series(index, artifact),
        )
    figure.add_traces(exits)
    measured = [(100 * p["energy"], p[field]) for artifact in artifacts for p in artifact.points]
    front = pareto_front(measured + [(star.x[0], star.y[0]) for star in exits])
    end = max(energy for energy, _ in measured)
    figure.add_scatter(
        x=[*(energy for energy, _ in front), end],
        y=[*(accuracy for _, accuracy in front), front[-1][1]],
        mode="lines",
        line={"shape": "hv", "dash": "dot", "width": 1.5, "color": "var(--quiet)"},
        hoverinfo="skip",
        name="Pareto front",
    )
    if artifacts[0].converted:
        figure.add_scatter(
            x=[100],
            y=[artifacts[0].of_ann],
            mode="markers",
            marker={"symbol": "x", "size": 10, "color": "var(--quiet)"},
            hovertemplate=f"ANN<br>{title} %{{y:.2f}} %<extra></extra>",
            name="ANN",
        )
    figure.update_xaxes(title_text=f"energy, % of {dense(artifacts[0])}", rangemode="tozero")
    figure.update_yaxes(title_text=f"{title}, %", autorangeoptions_include=_around(artifacts, field))
    return _dress(figure, 440)


def _early_exit(index: int, artifact: Artifact) -> go.Scatter:
    early = artifact.evaluation["exit"]
    series = _series(index, artifact)
    return go.Scatter(
        x=[100 * early["energy"]],
        y=[early["top1"]],
        customdata=[early["timesteps"]],
        hovertemplate="%{meta}, early exits<br>%{customdata:.2f} timesteps on average<br>energy %{x:.1f} %<br>"
        "top-1 %{y:.2f} %<extra></extra>",
        mode="markers",
        showlegend=False,
        **series
        | {
            "marker": {
                "symbol": "star",
                "size": 14,
                "color": series["line"]["color"],
                "line": {"width": 1, "color": "var(--page)"},
            }
        },
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (energy, accuracy) that no other point betters in one without being worse in the other, by energy."""
    front: list[tuple[float, float]] = []
    for energy, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((energy, accuracy))
    return front


def firing(artifact: Artifact) -> go.Figure:
    """The rate of each neuron in each timestep, in order of execution."""
    neurons = artifact.evaluation["costs"]["neurons"]
    names = [short(neuron["neuron"]) for neuron in neurons]
    times = list(range(1, 1 + max(len(neuron["rate"]) for neuron in neurons)))
    what = "spikes in a run of T" if artifact.synchronous else "spikes in this timestep"
    figure = go.Figure(
        go.Heatmap(
            x=times,
            z=[neuron["rate"] for neuron in neurons],
            text=[[escape(f"{neuron['neuron']} ({neuron['kind']})", quote=False)] * len(times) for neuron in neurons],
            hovertemplate=f"%{{text}}<br>T = %{{x}}<br>%{{z:.3f}} {what} per value<extra></extra>",
            colorscale=HEAT,
            zmin=0,
            zmax=max(max(neuron["rate"]) for neuron in neurons) or 1,
            xgap=1,
            ygap=1,
            colorbar={
                "orientation": "h",
                "thickness": 10,
                "x": 0.5,
                "xanchor": "center",
                "y": 1,
                "yanchor": "bottom",
                "ypad": 6,
                "outlinewidth": 0,
                "nticks": 6,
            },
        )
    )
    _dress(figure, 96 + 17 * len(names))
    labels = [escape(name, quote=False) for name in names]
    figure.update_yaxes(autorange="reversed", tickvals=list(range(len(names))), ticktext=labels, showgrid=False, ticks="")
    # Below a colour bar, plotly moves the title of the axis onto its ticks.
    figure.update_xaxes(_time_axis(times) | {"title_text": "", "showgrid": False, "ticks": ""})
    figure.update_layout(margin_t=0)
    return figure


def worst_errors(artifact: Artifact) -> go.Figure:
    """The relative errors of the modules that end with the largest ones, at each timestep."""
    figure = go.Figure()
    worst = artifact.evaluation["modules"][:WORST]
    times = list(range(1, 1 + len(worst[0]["relative_error"])))
    for index, module in enumerate(worst):
        figure.add_scatter(
            x=times,
            y=[error or None for error in module["relative_error"]],  # no error has no logarithm
            hovertemplate="%{meta}<br>T = %{x}<br>relative error %{y:.3g}<extra></extra>",
            mode="lines+markers",
            **_look(index, short(module["name"]), module["name"]),
        )
    figure.update_yaxes(type="log", title_text="relative error", exponentformat="power")
    figure.update_xaxes(_time_axis(times))
    return _dress(figure, 400)


def _series(index: int, artifact: Artifact) -> dict[str, Any]:
    """What marks an artifact in every chart."""
    return _look(index, artifact.name, artifact.name) | {"legendgroup": str(index)}


def _look(index: int, name: str, full: str) -> dict[str, Any]:
    # Plotly reads HTML in names, and fields in a template, but not in what those fields hold.
    colour = f"var(--series-{index % COLOURS})"
    return {
        "name": escape(name, quote=False),
        "meta": escape(full, quote=False),
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
    }


def _around(artifacts: Sequence[Artifact], field: str) -> list[float]:
    """What an axis has to show, so that the difference of an image does not fill it."""
    values = [point[field] for artifact in artifacts for point in artifact.points]
    part, least, most = (0.01, -1, 1) if field == "similarity" else (1, 0, 100)
    return [max(min(values) - part, least), min(max(values) + part, most)]


def _ann_line(times: list[int], accuracy: float) -> go.Scatter:
    return go.Scatter(
        x=[times[0], times[-1]],
        y=[accuracy, accuracy],
        mode="lines",
        line={"dash": "dash", "width": 1.5, "color": "var(--quiet)"},
        hovertemplate="ANN<br>%{y:.2f} %<extra></extra>",
        name=f"ANN {accuracy:.1f} %",
    )


def _times(timesteps: Any) -> list[int]:
    return sorted(set(timesteps))


def _time_axis(times: list[int]) -> dict[str, Any]:
    """Whole timesteps; all of them where they are few."""
    ticks: dict[str, Any] = {"tickvals": times} if len(times) <= 8 else {"nticks": 9, "tickformat": "d"}
    return ticks | {"title_text": "timesteps T"}


def _dress(figure: go.Figure, height: int) -> go.Figure:
    """What all charts have in common."""
    axis = {"gridcolor": "var(--grid)", "linecolor": "var(--line)", "zeroline": False, "automargin": True, "title_standoff": 8}
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 12, "t": 24, "b": 8, "pad": 2},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "var(--text)"},
        paper_bgcolor="var(--page)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"bgcolor": "var(--panel)", "bordercolor": "var(--line)", "font": {"color": "var(--text)"}},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "var(--quiet)", "activecolor": "var(--text)"},
        legend={"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"},
        uirevision="kept",  # what the reader has hidden stays hidden when the theme changes
    )
    return figure
