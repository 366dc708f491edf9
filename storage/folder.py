"""A zoo model on disk: the folder that timm reads as ``local-dir:FOLDER``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from ..errors import ArtifactError
from ..files import check_output, whole_folder
from ..reading import parsed
from .versions import versions

SECTION, WEIGHTS = "vit2snn_zoo", "model.safetensors"


def save_model(model: nn.Module, out: str | Path, *, overwrite: bool = False, records: Mapping[str, Any] | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors``; the folder appears when it is whole, and not at all if anything fails.

    Args:
        model: made by ``timm.create_model``.
        out: the folder.
        overwrite: replace a folder that this function wrote.
        records: further documents to write, by file name.

    Raises:
        OutputExistsError: ``out`` exists and ``overwrite`` is not set.
        ArtifactError: the folder cannot be written.
    """
    out = Path(out)
    check_output(out, overwrite, is_replaceable)
    with whole_folder(out) as folder:
        save_config_for_hf(model, str(folder / "config.json"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {SECTION: {"versions": versions()}}
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        for name, document in {"config.json": config, **(records or {})}.items():
            (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def is_model_folder(folder: Path) -> bool:
    """Whether `save_model` wrote a folder."""
    try:
        config = parsed(folder / "config.json")
    except ArtifactError:
        return False
    return isinstance(config, dict) and isinstance(config.get(SECTION), dict)


def is_replaceable(folder: Path) -> bool:
    """Whether `save_model` wrote all of a folder, and not somebody whose ``config.json`` has a section of that name."""
    return is_model_folder(folder) and (folder / WEIGHTS).is_file()
