"""The converted model on disk: a folder of JSON and safetensors, from which `load` gives the same model bit for bit.

``config.json`` is the one that timm writes for the ANN (architecture, its arguments, pretrained configuration), with a section
``vit2snn``: schema version, recipe, input size, source, and how the ANN is built (see `vit2snn.storage.building`).
``model.safetensors`` has weights, thresholds, priors and biases, ``ann.safetensors`` the ANN's weights where the network does
not compute what the ANN computes; ``conversion.json`` a row for each module; ``calibration.json`` the digests of the
calibration images; ``exits.json`` how sure the network was of them. Further JSON files (``records``) go beside them.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..convert import Recipe, SpikingModel, Teacher, analog_copy, structure
from ..convert.fields import shown
from ..errors import ArtifactError, RecipeError, Vit2SnnError
from ..files import check_output, whole_folder
from ..measure import ExitTable
from ..reading import checked, parsed, read_json
from ..spiking import neurons, prepare_process
from .building import FOREIGN, WEIGHTS, built, check_handlers, details, plain_config, reason, timm_config
from .card import README, model_card
from .hub import find, push
from .likeness import check_same
from .schema import CONFIG, SCHEMA, SECTION, Calibration, Config, Exits, Section
from .tables import check_tables
from .tensors import dtype_of, read_tensors, write_tensors
from .versions import versions

TEACHER, EXITS, CALIBRATION = "ann.safetensors", "exits.json", "calibration.json"
AGAIN = "convert the model again"
DISJOINT = (
    "without it the model does not tell which images it was calibrated on, and must not be scored on: convert the model again"
)
LONGEST = 200  # letters of a name in a message


def save(
    snn: SpikingModel,
    out: str | Path,
    *,
    source: str = "",
    builder: str | None = None,
    overwrite: bool = False,
    records: Mapping[str, Any] | None = None,
    errors: Mapping[str, list[float]] | None = None,
) -> None:
    """Write a converted model; the folder appears when it is whole, and not at all if anything fails.

    It is loaded again before it appears, and must give the logits of ``snn`` on a random image.

    Args:
        snn: the model.
        out: the folder.
        source: what the ANN was called by whoever made it, for the record.
        builder: ``package.module:function`` that makes the ANN (with any weights), where ``timm.create_model`` does not. `load`
            calls it only if it is told to trust it.
        overwrite: replace an earlier artifact at ``out``.
        records: further documents to write, by file name.
        errors: for each neuron, the relative error of its decoded value at each timestep (see `vit2snn.measure`).

    Raises:
        OutputExistsError: ``out`` exists and ``overwrite`` is not set.
        ArtifactError: the folder cannot be written, or what was written gives another network; the message names the module.
    """
    out = Path(out)
    check_output(out, overwrite, is_replaceable)
    with whole_folder(out) as folder:
        config = _config(snn, source, builder, folder / "config.json")
        write_tensors(snn.network, folder / WEIGHTS)
        if snn.teacher is not None:
            write_tensors(snn.teacher.ann, folder / TEACHER)
        rows = conversion_rows(snn, errors or {})
        calibration = {"images": len(snn.calibrated_on), "digests": list(snn.calibrated_on)}
        exits = {EXITS: snn.exits.to_json()} if snn.exits else {}
        documents = {"config.json": config, "conversion.json": rows, CALIBRATION: calibration, **exits, **(records or {})}
        for name, document in documents.items():
            (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        (folder / README).write_text(model_card(config, rows, documents.get("run.json", {})), encoding="utf-8")
        check_same(snn, lambda: load(folder, trust=builder))


def share(
    snn: SpikingModel,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    source: str = "",
    builder: str | None = None,
) -> str:
    """Write a converted model to the Hugging Face hub; see `save`, and `vit2snn.storage.hub.push` for the rest.

    Returns:
        ``hf-hub:USER/NAME@COMMIT``.

    Raises:
        ArtifactError: as of `save`.
        HubError: the hub cannot be reached or refuses.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save(snn, folder, source=source, builder=builder)
        return push(folder, repository, private=private, revision=revision, commit_message=commit_message)


def _config(snn: SpikingModel, source: str, builder: str | None, path: Path) -> dict[str, Any]:
    """What ``config.json`` says; timm writes its part of it to ``path`` on the way."""
    ann = snn.network if snn.teacher is None else snn.teacher.ann
    config = timm_config(ann, path) if builder is None else plain_config(ann)
    own = {
        "schema": SCHEMA,
        "source": source,
        "builder": builder,
        "recipe": snn.recipe.to_json(),
        "input_size": list(snn.input_size),
        "teacher": _kind(snn.teacher),
        **details(snn),
        "versions": versions(),
    }
    return config | {"vit2snn": own}


def _kind(teacher: Teacher | None) -> str | None:
    """What the teacher is: the ``ann`` as it was made, or a ``network`` with analog neurons."""
    if teacher is None:
        return None
    return "network" if any(neurons(teacher.ann)) else "ann"


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds a converted model (of any schema)."""
    try:
        return SECTION in (parsed(folder / CONFIG) or ())
    except (ArtifactError, TypeError):
        return False


def is_replaceable(folder: Path) -> bool:
    """Whether `save` wrote a folder (of any schema), and not somebody whose ``config.json`` has a section of that name."""
    if not is_artifact(folder):
        return False
    section = parsed(folder / CONFIG)[SECTION]
    return isinstance(section, dict) and {"schema", "recipe"} <= section.keys() and (folder / WEIGHTS).is_file()


def read_config(folder: str | Path) -> Config:
    """The ``config.json`` of an artifact.

    Raises:
        ArtifactError: the folder holds no converted model, a damaged one, or one of another schema.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"there is no folder {str(folder)!r}", "make one with: vit2snn convert MODEL -o OUT")
    if not (folder / CONFIG).is_file() or SECTION not in (found := read_json(folder / CONFIG, dict, AGAIN)):
        raise ArtifactError(
            f"{str(folder)!r} is not a converted model: its config.json is missing or another program's",
            "make one with: vit2snn convert MODEL -o OUT (vit2snn.storage.open_network opens models of the zoo too)",
        )
    section = found[SECTION]
    if isinstance(section, dict) and section.get("schema") != SCHEMA:
        source = section.get("source") or "MODEL"
        raise ArtifactError(
            f"{str(folder)!r} has schema {shown(section.get('schema'))}, this vit2snn reads schema {SCHEMA}",
            f"make it anew: vit2snn convert {shlex.quote(str(source)[:LONGEST])} -o {shlex.quote(str(folder))} --overwrite",
        )
    config = checked(found, Config, folder / CONFIG, AGAIN)
    config["pretrained_cfg"]["input_size"] = config[SECTION]["input_size"]  # in which its neurons were calibrated
    try:
        config[SECTION]["recipe"] = Recipe.from_json(config[SECTION]["recipe"]).to_json()  # with the fields that it leaves out
    except RecipeError as error:
        raise ArtifactError(f"{str(folder / CONFIG)!r} is damaged: {error}", AGAIN) from None
    return config


def load(folder: str | Path, trust: str | None = None) -> SpikingModel:
    """The converted model in a folder, on the CPU, in evaluation mode; it gives the logits it gave before `save`.

    Args:
        folder: that `save` wrote, or ``hf-hub:USER/NAME[@REVISION]`` (see `vit2snn.storage.hub.find`).
        trust: the ``package.module:function`` that makes the ANN, if the folder names one: it is code, which is run only if it
            is named here (or in `vit2snn.storage.trusting`).

    Raises:
        ArtifactError: the folder holds no converted model, or its parts do not fit each other, or it names code that is not
            trusted.
        HubError: the hub has no such model, or cannot be reached.
    """
    prepare_process()
    folder = find(folder).folder
    config = read_config(folder)
    check_handlers(config, folder)
    make = built(config, folder, trust, AGAIN)
    try:
        with torch.random.fork_rng([]):  # of weights that are about to be replaced
            snn = _read(config["vit2snn"], make, folder)
            check_tables(snn)
    except (Vit2SnnError, *FOREIGN) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"the converted model in {str(folder)!r} is damaged: {reason(error)}", AGAIN) from error
    snn.calibrated_on = tuple(read_json(folder / CALIBRATION, Calibration, DISJOINT)["digests"])
    snn.exits = _exits(folder / EXITS)
    return snn


def _read(section: Section, make: Callable[[], nn.Module], folder: Path) -> SpikingModel:
    """The network and its teacher."""
    recipe = Recipe.from_json(section["recipe"])
    snn = structure(make(), recipe, section["input_size"])
    read_tensors(snn.network, folder / WEIGHTS, AGAIN)
    if section["teacher"]:
        ann = make() if section["teacher"] == "ann" else analog_copy(structure(make(), recipe, snn.input_size).network)
        ann.to(dtype_of(folder / TEACHER, AGAIN))  # its own: the network may have been made half since
        read_tensors(ann, folder / TEACHER, AGAIN)
        snn.teacher = Teacher(ann)
    return snn


def _exits(path: Path) -> ExitTable | None:
    hint = "remove the file to do without early exits, or convert the model again"
    if not path.is_file():
        return None
    try:
        return ExitTable.from_json(dict(read_json(path, Exits, hint)))
    except ValueError as error:
        raise ArtifactError(f"{str(path)!r} is damaged: {error}", hint) from error


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
        if snn.plan.driven(module.name):
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
