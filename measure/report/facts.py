"""What is said about an artifact in words and single numbers."""

from __future__ import annotations

import shlex
from typing import Any

from .artifact import Artifact
from .schema import ReadPart

COMMON = ("blocks", "stages", "branch", "spiking_attention", "neuron")
LETTERS = 22


def facts(artifact: Artifact) -> list[str]:
    """What was made of what, and scored on what."""
    architecture = artifact.config["architecture"]
    evaluation = artifact.evaluation
    parts = [artifact.source if artifact.source == architecture else f"{artifact.source} ({architecture})"]
    if artifact.converted:
        parts.append(f"recipe {artifact.recipe}")
    parts += [f"T = {readout(artifact.points[-1])}", f"{evaluation['images']} images scored"]
    if artifact.converted and artifact.decisive == "top1":
        parts.append(f"ANN {artifact.words.top1} {artifact.of_ann:.1f} %")
    return [*parts, f"image set {evaluation['digest']}"]


def readout(point: dict[str, Any]) -> str:
    """After how many timesteps a point of the curve was read."""
    t, latency = point["timestep"], point["latency"]
    return f"{t}" if latency == t else f"{t} per layer, {latency} in all"


def results(artifact: Artifact) -> dict[str, str]:
    """The figures that decide, at the last timestep, and with early exits."""
    last, early, words = artifact.points[-1], artifact.evaluation.get("exit"), artifact.words
    found = {f"{getattr(words, artifact.decisive)} at T = {last['timestep']}": f"{last[artifact.decisive]:.1f} %"}
    if artifact.converted and artifact.decisive == "top1":
        found[f"{words.agreement} with ANN"] = f"{last['agreement']:.1f} %"
    if last.get("similarity") is not None:
        found[f"{words.similarity} with ANN's features"] = f"{last['similarity']:.4f}"
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
        "scored from": what_was_read(artifact.evaluation.get("read")),
        "made from": what_was_read(run.get("read")),
        "made by": _command(run.get("command")),
        "scored by": _command(artifact.evaluation.get("command")),
        "seed": str(run.get("seed", "")),
        "seconds to make": f"{run['seconds']:g}" if "seconds" in run else "",
        "versions": ", ".join(f"{name} {version}" for name, version in artifact.section.get("versions", {}).items()),
    }
    return {name: value for name, value in found.items() if value}


def what_was_read(read: ReadPart | None) -> str:
    """What images were read from, in a line; empty if nothing tells."""
    if read is None:
        return ""
    images = "a stream" if read["images"] is None else f"{read['images']} images"
    skipped = f", {read['skipped']} of them passed over" if read["skipped"] else ""
    return f"{read['data']}, split {read['split']}: {images}{skipped}"


def _command(words: list[str] | None) -> str:
    return shlex.join(words) if words else ""


def percent(share: float) -> str:
    """A share, with as many digits as are of use."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def short(name: str) -> str:
    """A neuron's or block's name for a chart: without words that many have in common, and of few letters."""
    brief = ".".join(part for part in name.split(".") if part not in COMMON) or name
    return brief if len(brief) <= LETTERS else f"{brief[: LETTERS // 3]}…{brief[-2 * LETTERS // 3 :]}"
