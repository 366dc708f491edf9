"""What a report is made of: the JSON documents in the folders of models, read and checked."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from ..convert import RECIPES, Recipe
from ..errors import ArtifactError
from ..measure.report import Artifact
from .artifact import is_artifact, read_config
from .folder import is_model_folder

MAIN = (
    *(("structure", name) for name in ("attention", "mlp", "norm")),
    *(("spikes", name) for name in ("neuron", "coding", "schedule", "levels")),
)
"""The recipe fields that tell most about a recipe without a name."""

REQUIRED: dict[tuple[str, ...], tuple[str, ...]] = {
    ("ann",): ("top1",),
    ("calibration",): ("images", "scored"),
    ("snn",): ("timestep", "top1", "agreement", "energy", "latency"),
    ("exit",): ("top1", "energy", "timesteps"),
    ("modules",): ("name", "module", "relative_error", "spikes_per_neuron", "saturation", "dead"),
    ("advice",): ("finding", "action"),
    ("audit",): ("sentence", "additions", "timesteps", "images", "operations"),
    ("audit", "operations"): ("module", "function", "operands", "copies", "accumulates", "multiplies", "addition_only"),
    ("costs",): ("neurons", "energy", "convention_uj", "memory_estimate_uj"),
    ("costs", "neurons"): ("neuron", "kind", "rate"),
    ("costs", "energy"): ("name", "snn_uj", "ann_uj"),
}
"""Fields of a part of ``evaluation.json``, or of each row where the part is a list; parts may be missing."""


def read_artifacts(folders: Sequence[Path]) -> list[Artifact]:
    """The models in folders, each with its evaluation.

    Raises:
        ArtifactError: a folder holds no model or no whole evaluation of it, or they are not of one model and one set of images.
    """
    artifacts = [_read(folder) for folder in folders]
    for one, other in combinations(artifacts, 2):
        _check_comparable(one, other)
    names = [artifact.name for artifact in artifacts]
    return [replace(a, name=a.name if names.count(a.name) == 1 else str(a.folder)) for a in artifacts]


def _read(folder: Path) -> Artifact:
    if is_artifact(folder) or not is_model_folder(folder):
        config = read_config(folder)
        plan = _json(folder / "conversion.json", "convert the model again", list)
    else:
        config, plan = _json(folder / "config.json"), []
    run = _json(folder / "run.json") if (folder / "run.json").is_file() else {}
    demo = config["vit2snn"]["source"] == "demo" if "vit2snn" in config else run.get("data", "") is None
    again = f"run: vit2snn evaluate {shlex.quote(str(folder))}{'' if demo else ' --data DATA'}"
    path = folder / "evaluation.json"
    if not path.is_file():
        raise ArtifactError(f"{str(folder)!r} holds no evaluation", again)
    evaluation = _json(path, again)
    _check_parts(evaluation, "vit2snn" in config, folder, again)
    _check_finite(evaluation, folder, again)
    recipe = recipe_name(config["vit2snn"]["recipe"]) if "vit2snn" in config else ""
    return Artifact(folder, folder.resolve().name, recipe, config, evaluation, plan, run)


def _json(path: Path, hint: str = "", kind: type = dict) -> Any:
    """A document whose outermost value is of that kind."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{str(path)!r} cannot be read: {error}", hint) from error
    if not isinstance(found, kind):
        raise ArtifactError(f"{str(path)!r} holds a {type(found).__name__} where a {kind.__name__} was expected", hint)
    return found


def _check_parts(evaluation: dict[str, Any], converted: bool, folder: Path, again: str) -> None:
    """Refuse an evaluation that an older vit2snn wrote, and a damaged one."""
    for part in ("images", "digest", "calibration", "snn", "audit", "costs", *(["ann"] if converted else [])):
        if not evaluation.get(part):
            raise ArtifactError(f"the evaluation in {str(folder)!r} has no {part!r}: an older vit2snn wrote it", again)
    for path, fields in REQUIRED.items():
        found: Any = evaluation
        for key in path:
            found = found.get(key) or []
        told = converted and path == ("snn",)  # where there is no ANN, what compares with it is null
        for row in found if isinstance(found, list) else [found]:
            missing = [f for f in fields if not isinstance(row, dict) or f not in row or (told and row[f] is None)]
            if missing:
                raise ArtifactError(f"{'.'.join(path)!r} of the evaluation in {str(folder)!r} has no {missing[0]!r}", again)


def _check_finite(evaluation: dict[str, Any], folder: Path, again: str) -> None:
    """Refuse an evaluation that holds numbers which are not finite: those of the curve are named by their timestep."""
    curve = ((f"{field} at timestep {p['timestep']}", value) for p in evaluation["snn"] for field, value in _infinite(p))
    for field, value in chain(curve, _infinite(evaluation)):
        raise ArtifactError(f"the evaluation in {str(folder)!r} has {value} for {field}: expected a finite number", again)


def _infinite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Where there are numbers that are not finite, and which."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _infinite(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _infinite(item, f"{path}[{index}]")


def _check_comparable(one: Artifact, other: Artifact) -> None:
    """Refuse to draw different models, or accuracies on different images, beside each other."""
    for (what, first), second in zip(_identity(one).items(), _identity(other).values(), strict=True):
        if first != second:
            raise ArtifactError(
                f"{str(one.folder)!r} and {str(other.folder)!r} differ in the {what}: {first} and {second}",
                f"report on them one by one: vit2snn report {shlex.quote(str(one.folder))}",
            )


def _identity(artifact: Artifact) -> dict[str, str]:
    """What artifacts that are compared have in common."""
    return {
        "model": f"{artifact.source} ({artifact.config['architecture']})",
        "arguments of the model": json.dumps(artifact.config.get("model_args", {}), sort_keys=True),
        "scored images (digest)": str(artifact.evaluation["digest"]),
    }


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
