"""The page: what is shown of the artifacts together, then of each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from string import Template
from xml.etree.ElementTree import Element

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from . import charts, tables
from .artifact import Artifact
from .facts import facts, record, results
from .markup import Child, element, embedded, html

ESTIMATE = (
    "Every figure is a count of operations times the energy of one; none was measured on hardware. Memory traffic is an "
    "estimate: from each weight and state moved once in a pass, to every operand fetched for every operation."
)
RUNS = "Each layer takes its T timesteps before the next one begins: a figure at T is that of a whole run of T timesteps."


def report_page(artifacts: Sequence[Artifact]) -> str:
    """The page about artifacts of one model, scored on the same images: HTML that needs nothing else."""
    many = len(artifacts) > 1
    title = f"{artifacts[0].source} as {f'{len(artifacts)} spiking networks' if many else 'a spiking network'}"
    parts = files(__package__)
    read = {name: (parts / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    return Template(read["html"]).substitute(
        title=html([element("title", title)]),
        heading=html([element("h1", title)]),
        body=html([_overview(artifacts), *_comparison(artifacts), *_details(artifacts)]),
        style=read["css"],
        plotly=get_plotlyjs(),
        script=read["js"],
    )


def _overview(artifacts: Sequence[Artifact]) -> Element:
    """Of each artifact the verdict, what it is, and the figures that decide."""
    return element("div", *(_summary(index, artifact) for index, artifact in enumerate(artifacts)), class_="overview")


def _summary(index: int, artifact: Artifact) -> Element:
    figures = [element("div", element("dt", name), element("dd", figure)) for name, figure in results(artifact).items()]
    return element(
        "article",
        element("h2", element("span", class_=f"swatch series-{index % charts.COLOURS}"), artifact.name),
        element("p", artifact.evaluation["audit"]["sentence"], class_="verdict"),
        element("p", " · ".join(facts(artifact)), class_="facts"),
        element("dl", *figures, class_="results"),
    )


def _comparison(artifacts: Sequence[Artifact]) -> list[Element]:
    """Accuracy (agreement, without labels) against timesteps, and against energy."""
    scored = "accuracy" if artifacts[0].decisive == "top1" else "agreement"
    runs = [artifact.name for artifact in artifacts if artifact.synchronous]
    told = [f"{RUNS} (So in {', '.join(runs)}.)"] if runs else []
    over_time = _chart(charts.curves(artifacts), f"{scored} against timesteps", *told)
    stars = "; stars are early exits" if any(artifact.evaluation.get("exit") for artifact in artifacts) else ""
    told = [f"Points are timesteps, from the first at the left{stars}."]
    over_energy = _chart(charts.energy_and_accuracy(artifacts), f"{scored} against energy", *told)
    energies = element("div", tables.energies(artifacts), element("p", ESTIMATE, class_="note"))
    place = "beside" if len(artifacts) == 1 else "below"
    return [
        element("section", element("h2", f"{scored.capitalize()} and timesteps"), over_time),
        element("section", element("h2", f"Energy and {scored}"), element("div", over_energy, energies, class_=place)),
    ]


def _details(artifacts: Sequence[Artifact]) -> list[Element]:
    """All about each artifact; of several, all but the first are closed at first."""
    if len(artifacts) == 1:
        return _sections(artifacts[0])
    boxes = [
        element("details", element("summary", element("h2", artifact.name)), *_sections(artifact), class_="artifact")
        for artifact in artifacts
    ]
    boxes[0].set("open", "")
    return boxes


def _sections(artifact: Artifact) -> list[Element]:
    return [
        *_firing(artifact),
        *_contest(artifact),
        *_modules(artifact),
        *_diagnosis(artifact),
        _audit(artifact),
        *_plan(artifact),
        _record(artifact),
    ]


def _firing(artifact: Artifact) -> list[Element]:
    if not artifact.evaluation["costs"]["neurons"]:
        return []
    told = "A row for each neuron, in order of execution; a column for each timestep. The colour is spikes per value."
    runs = [f" {RUNS}"] if artifact.synchronous else []
    return [
        _section("Firing rates", _chart(charts.firing(artifact), "firing rate of each neuron in each timestep", told, *runs))
    ]


def _contest(artifact: Artifact) -> list[Element]:
    if not artifact.evaluation.get("contest"):
        return []
    told = (
        "The ANN with integer weights and activations of few bits, on the same images. Energy of an image, in µJ, is of 8-bit "
        "arithmetic, in which multiplications of fewer bits take less by the square; memory traffic is the least there can be."
    )
    verdicts = [element("li", text) for text in artifact.evaluation["contest"]["verdicts"]]
    parts = element("p", told, class_="note"), tables.contest(artifact), element("ul", *verdicts)
    return [_section("Against the quantised ANN", *parts)]


def _modules(artifact: Artifact) -> list[Element]:
    if not artifact.evaluation.get("modules"):
        return []
    beyond = "at the last" if artifact.synchronous else "in its worst"
    told = (
        "Error: of what it has decoded or put out at the last timestep, relative to the ANN's. Saturated: share of its values "
        f"that are beyond what it can send, {beyond} timestep. Dead: share of its neurons that never fired. "
        "Spikes: per value, in all timesteps."
    )
    return [_section("Errors by module", tables.modules(artifact), element("p", told, class_="note"))]


def _diagnosis(artifact: Artifact) -> list[Element]:
    advice = artifact.evaluation.get("advice") or []
    items = [element("li", element("strong", row["finding"]), " ", row["action"]) for row in advice]
    parts = [element("ol", *items, class_="advice")] if items else []
    if artifact.evaluation.get("modules"):
        parts.append(
            _chart(charts.worst_errors(artifact), "error of the worst modules", "The modules that end with the largest errors.")
        )
    return [_section("Diagnosis", *parts)] if parts else []


def _audit(artifact: Artifact) -> Element:
    audit = artifact.evaluation["audit"]
    told = f"As seen on {audit['images']} images; counts are of one image in all {audit['timesteps']} timesteps."
    return _section("Is it spike-driven?", element("p", told, class_="note"), tables.audit(artifact))


def _plan(artifact: Artifact) -> list[Element]:
    if not artifact.plan:
        return []
    heading = element("summary", f"What became of the {len(artifact.plan)} modules of the ANN")
    return [_section("Plan", element("details", heading, tables.plan(artifact)))]


def _record(artifact: Artifact) -> Element:
    parts: list[Element] = []
    if artifact.converted:
        used, scored = (artifact.evaluation["calibration"][name] for name in ("images", "scored"))
        if scored:
            told = f"{scored} of the {used} calibration images were scored too: the figures here flatter."
            parts.append(element("p", element("strong", "Warning: "), told, class_="warning"))
        else:
            parts.append(element("p", f"Calibrated on {used} images, none of which was scored: the two sets are disjoint."))
    rows = [element("div", element("dt", name), element("dd", value)) for name, value in record(artifact).items()]
    return _section("Calibration and record" if artifact.converted else "Record", *parts, element("dl", *rows, class_="record"))


def _section(title: str, *parts: Child) -> Element:
    return element("section", element("h3", title), *parts)


def _chart(figure: Figure, label: str, *caption: str) -> Element:
    """A chart that the page's script draws, of the height that it will have."""
    place = element("div", class_="plot", role="img", aria_label=label, style=f"height: {figure.layout.height}px")
    return element("figure", place, embedded(figure.to_json()), element("figcaption", *caption))
