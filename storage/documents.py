"""What a report is made of: the JSON documents in the folders of models, read and checked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ..convert import RECIPES, Recipe
from ..errors import ArtifactError
from ..measure.report import Artifact
from ..measure.report.schema import Evaluation, PlanRow, Run, ZooEvaluation, ZooPoint
from ..reading import Document, read_json
from .artifact import AGAIN, is_artifact, read_config
from .folder import is_model_folder
from .schema import ZooConfig

MAIN = (
    *(("structure", name) for name in ("attention", "mlp", "norm")),
    *(("spikes", name) for name in ("neuron", "coding", "schedule", "levels")),
)
"""The recipe fields that tell most about a recipe without a name."""


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
    if not is_artifact(folder) and is_model_folder(folder):
        return _of_zoo(folder)
    config, run = read_config(folder), _run(folder)
    evaluation = read_json(*_evaluated(folder, Evaluation, demo=config["vit2snn"]["source"] == "demo"))
    plan = read_json(folder / "conversion.json", list[PlanRow], AGAIN)
    recipe = recipe_name(config["vit2snn"]["recipe"])
    return Artifact(folder, folder.resolve().name, recipe, dict(config), dict(evaluation), plan, run)


def _of_zoo(folder: Path) -> Artifact:
    config, run = read_json(folder / "config.json", ZooConfig), _run(folder)
    evaluation = read_json(*_evaluated(folder, ZooEvaluation, demo=trained_on_demo(folder)))
    return Artifact(folder, folder.resolve().name, "", dict(config), dict(evaluation), [], run)


def trained_on_demo(folder: Path) -> bool:
    """Whether a zoo model has learned the images of the demo.

    Raises:
        ArtifactError: its ``run.json`` is damaged.
    """
    return _run(folder).get("data", "") is None


def last_point(folder: Path) -> ZooPoint | None:
    """The end of the curve of a zoo model; None if it was not evaluated.

    Raises:
        ArtifactError: its evaluation is damaged.
    """
    path = folder / "evaluation.json"
    return read_json(path, ZooEvaluation, "evaluate the model again")["snn"][-1] if path.is_file() else None


def _run(folder: Path) -> Run:
    return read_json(folder / "run.json", Run) if (folder / "run.json").is_file() else {}


def _evaluated(folder: Path, kind: type[Document], demo: bool) -> tuple[Path, type[Document], str]:
    """The file of the evaluation of a model, its schema, and how to make it again."""
    path = folder / "evaluation.json"
    again = f"run: vit2snn evaluate {shlex.quote(str(folder))}{'' if demo else ' --data DATA'}"
    if not path.is_file():
        raise ArtifactError(f"{str(folder)!r} holds no evaluation", again)
    return path, kind, again


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
        "figure that is scored": getattr(artifact.words, artifact.decisive),
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
