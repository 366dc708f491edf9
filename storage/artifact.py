"""The converted model on disk: a folder of JSON and safetensors, from which `load` gives the same model bit for bit.

``config.json`` is the one that timm writes for the ANN (architecture, its arguments, pretrained configuration), with a section
``vit2snn``: schema version, recipe, input size and source. ``model.safetensors`` has weights, thresholds, priors and biases,
``ann.safetensors`` the ANN's weights where the network does not compute what the ANN computes; ``conversion.json`` a row for
each module; ``calibration.json`` the digests of the calibration images; ``exits.json`` how sure the network was of them.
Further JSON files (``records``) go beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf

from ..convert import ExitTable, Recipe, SpikingModel, fold, structure
from ..errors import ArtifactError
from .card import model_card
from .files import check_output, whole_folder
from .versions import versions

SCHEMA = 4
WEIGHTS, TEACHER = "model.safetensors", "ann.safetensors"


def save(
    snn: SpikingModel,
    out: str | Path,
    *,
    source: str = "",
    overwrite: bool = False,
    records: Mapping[str, Any] | None = None,
    errors: Mapping[str, list[float]] | None = None,
) -> None:
    """Write a converted model; the folder appears when it is whole, and not at all if anything fails.

    Args:
        snn: the model; it must come from a model that ``timm.create_model`` made.
        out: the folder.
        source: what the ANN was called by whoever made it, for the record.
        overwrite: replace an earlier artifact at ``out``.
        records: further documents to write, by file name.
        errors: for each neuron, the relative error of its decoded value at each timestep (see `vit2snn.evaluation`).

    Raises:
        OutputExistsError: ``out`` exists and ``overwrite`` is not set.
        ArtifactError: the folder cannot be written, or the model cannot be rebuilt from its name and arguments.
    """
    out = Path(out)
    check_output(out, overwrite, is_artifact)
    with whole_folder(out) as folder:
        config = _config(snn, folder / "config.json") | {
            "vit2snn": {
                "schema": SCHEMA,
                "source": source,
                "recipe": snn.recipe.to_json(),
                "input_size": list(snn.input_size),
                "folded": snn.folded,
                "teacher": snn.teacher is not None,
                "versions": versions(),
            }
        }
        _write_weights(snn.network.state_dict(), folder / WEIGHTS)
        if snn.teacher is not None:
            weights = snn.teacher.state_dict()
            _write_weights({name: weights[name] for name in _create(config).state_dict()}, folder / TEACHER)
        rows = conversion_rows(snn, errors or {})
        calibration = {"images": len(snn.calibrated_on), "digests": list(snn.calibrated_on)}
        exits = {"exits.json": snn.exits.to_json()} if snn.exits else {}
        documents = exits | {"config.json": config, "conversion.json": rows, "calibration.json": calibration, **(records or {})}
        for name, document in documents.items():
            (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(model_card(config, rows), encoding="utf-8")


def _write_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(whole, path, metadata={"format": "pt"})


def _config(snn: SpikingModel, path: Path) -> dict[str, Any]:
    """timm's own description of the ANN, and the proof that it rebuilds it."""
    ann = snn.network if snn.teacher is None else snn.teacher
    try:
        save_config_for_hf(ann, str(path))
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        again = _create(config)
        if snn.teacher is None:
            again = structure(again, snn.recipe, snn.input_size).network
        rebuilt = {name: value.shape for name, value in again.state_dict().items() if value.numel()}
    except (AttributeError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ArtifactError(
            f"this model cannot be described by a timm name and arguments: {error}",
            "make the ANN with timm.create_model(NAME, **arguments) to be able to save its conversion",
        ) from error
    present = ann.state_dict()
    for name, shape in rebuilt.items():
        if name not in present or present[name].shape != shape:
            raise ArtifactError(
                f"timm would rebuild {config['architecture']!r} with {name} of shape {tuple(shape)}, which is not this model",
                "make the ANN with timm.create_model(NAME, **arguments), and do not change its shape afterwards",
            )
    return config


def _create(config: Mapping[str, Any]) -> torch.nn.Module:
    arguments = {"num_classes": config["num_classes"], **config.get("model_args", {})}
    cfg = dict(config["pretrained_cfg"])
    model: torch.nn.Module = timm.create_model(config["architecture"], pretrained=False, pretrained_cfg=cfg, **arguments)
    return model


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds a converted model (of any schema)."""
    try:
        return "vit2snn" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def read_config(folder: str | Path) -> dict[str, Any]:
    """The ``config.json`` of an artifact.

    Raises:
        ArtifactError: the folder holds no converted model, or one of another schema.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"there is no folder {str(folder)!r}", "make one with: vit2snn convert MODEL -o OUT")
    if not is_artifact(folder):
        raise ArtifactError(
            f"{str(folder)!r} is not a converted model: its config.json is missing, unreadable or another program's",
            "make one with: vit2snn convert MODEL -o OUT",
        )
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    schema = config["vit2snn"].get("schema")
    if schema != SCHEMA:
        raise ArtifactError(
            f"{str(folder)!r} has schema {schema}, this vit2snn reads schema {SCHEMA}",
            f"make it anew with: vit2snn convert {config['vit2snn'].get('source') or 'MODEL'} -o {folder} --overwrite",
        )
    return config


def load(folder: str | Path) -> SpikingModel:
    """The converted model in a folder, on the CPU, in evaluation mode; it gives the logits it gave before `save`.

    Raises:
        ArtifactError: the folder holds no converted model, or its parts do not fit each other.
    """
    config = read_config(folder)
    try:
        recipe = Recipe.from_json(config["vit2snn"]["recipe"])
        snn = structure(_create(config), recipe, tuple(config["vit2snn"]["input_size"]))
        if config["vit2snn"]["folded"]:
            snn = fold(snn)
        snn.network.load_state_dict(load_file(Path(folder) / WEIGHTS))
        if config["vit2snn"]["teacher"]:
            snn.teacher = _create(config).eval().requires_grad_(False)
            snn.teacher.load_state_dict(load_file(Path(folder) / TEACHER))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"the converted model in {str(folder)!r} is damaged: {error}") from error
    snn.calibrated_on = _calibrated_on(Path(folder) / "calibration.json")
    exits = Path(folder) / "exits.json"
    snn.exits = ExitTable.from_json(json.loads(exits.read_text(encoding="utf-8"))) if exits.is_file() else None
    return snn


def _calibrated_on(path: Path) -> tuple[str, ...]:
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8"))["digests"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(
            f"{str(path)!r} does not tell which images the model was calibrated on",
            "without it the scored images may be calibration images: convert the model again",
        ) from None


def conversion_rows(snn: SpikingModel, errors: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """What became of each module, in order of execution, with its neurons."""
    rows = []
    neurons = snn.neurons()
    for module in snn.plan.modules:
        row: dict[str, Any] = {
            "name": module.name,
            "source": module.type,
            "result": module.becomes or type(snn.network.get_submodule(module.name)).__name__,
            "action": module.action,
            "operations": list(module.operations),
            "macs": module.macs,
        }
        if snn.plan.coded(module.name):
            row["neurons"] = [
                {
                    "name": name,
                    "spikes": neuron.alphabet.kind if neuron.alphabet else "analog",
                    "threshold": [float(step.max()) for step in neuron.threshold],
                    "relative_error": errors.get(name),
                }
                for name, neuron in neurons.items()
                if snn.owner(name) == module.name
            ]
        rows.append(row)
    return rows
