"""What is said about an artifact in words and single numbers."""

from __future__ import annotations

import shlex
from typing import Any

from ..convert import RECIPES, Recipe
from .documents import Artifact

MAIN = (
    *(("structure", name) for name in ("attention", "mlp", "norm")),
    *(("spikes", name) for name in ("neuron", "coding", "schedule", "levels")),
)
"""The recipe fields that tell most about a recipe without a name."""

COMMON = ("blocks", "stages", "branch", "spiking_attention", "neuron")
LETTERS = 22


def facts(artifact: Artifact) -> list[str]:
    """What was made of what, and scored on what."""
    architecture = artifact.config["architecture"]
    evaluation = artifact.evaluation
    parts = [artifact.source if artifact.source == architecture else f"{artifact.source} ({architecture})"]
    if artifact.converted:
        parts.append(f"recipe {recipe_name(artifact.section['recipe'])}")
    parts += [f"T = {readout(artifact.points[-1])}", f"{evaluation['images']} images scored"]
    if artifact.converted:
        parts.append(f"ANN top-1 {evaluation['ann']['top1']:.1f} %")
    return [*parts, f"image set {evaluation['digest']}"]


def recipe_name(recipe: dict[str, Any]) -> str:
    """The name of a recipe, whatever its T; of one without a name, its main fields."""
    given = Recipe.from_json(recipe)
    for name, known in RECIPES.items():
        if known == given.changed(timesteps=known.timesteps):
            return name
    fields = {f"{part}.{name}": recipe[part].get(name) for part, name in MAIN}
    return "of its own: " + ", ".join(f"{path} {_value(value)}" for path, value in fields.items() if value is not None)


def _value(value: Any) -> str:
    return " / ".join(f"{where} {what}" for where, what in value.items()) if isinstance(value, dict) else str(value)


def readout(point: dict[str, Any]) -> str:
    """After how many timesteps a point of the curve was read."""
    t, latency = point["timestep"], point.get("latency", point["timestep"])
    return f"{t}" if latency == t else f"{t} per layer, {latency} in all"


def results(artifact: Artifact) -> dict[str, str]:
    """The figures that decide, at the last timestep, and with early exits."""
    last, early = artifact.points[-1], artifact.evaluation.get("exit")
    found = {f"top-1 at T = {last['timestep']}": f"{last['top1']:.1f} %"}
    if artifact.converted:
        found["agreement with ANN"] = f"{last['agreement']:.1f} %"
    found |= {
        f"energy, of {dense(artifact)}": percent(last["energy"]),
        "additions": f"{100 * artifact.evaluation['audit']['additions']:.1f} %",
    }
    if early:
        found |= {"top-1, early exits": f"{early['top1']:.1f} %", "energy, early exits": percent(early["energy"])}
    return found


def dense(artifact: Artifact) -> str:
    """What energies are relative to."""
    return "the ANN's" if artifact.converted else "one pass on numbers"


def record(artifact: Artifact) -> dict[str, str]:
    """How the model and its figures were made, to make them again."""
    run = artifact.run
    found = {
        "images scored": f"{artifact.evaluation['images']} (image set {artifact.evaluation['digest']})",
        "made by": _command(run.get("command")),
        "scored by": _command(artifact.evaluation.get("command")),
        "seed": str(run.get("seed", "")),
        "seconds to make": f"{run['seconds']:g}" if "seconds" in run else "",
        "versions": ", ".join(f"{name} {version}" for name, version in artifact.section.get("versions", {}).items()),
    }
    return {name: value for name, value in found.items() if value}


def _command(words: list[str] | None) -> str:
    return shlex.join(words) if words else ""


def percent(share: float) -> str:
    """A share, with as many digits as are of use."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def short(name: str) -> str:
    """A neuron's or block's name for a chart: without words that many have in common, and of few letters."""
    brief = ".".join(part for part in name.split(".") if part not in COMMON) or name
    return brief if len(brief) <= LETTERS else f"{brief[: LETTERS // 3]}…{brief[-2 * LETTERS // 3 :]}"
