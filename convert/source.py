"""The ANN by name, with its weights."""

from __future__ import annotations

import argparse
import difflib
import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import is_model, list_models, load_state_dict, parse_model_name, split_model_name_tag
from torch import nn

from ..errors import CheckpointError, ModelError
from ..zoo.demo import FOLDER as DEMO


def load_model(
    name: str, checkpoint: str | Path | None = None, num_classes: int | None = None, pretrained: bool = True
) -> nn.Module:
    """A timm model in evaluation mode, float32.

    Args:
        name: a timm name with or without tag, ``hf-hub:...``, ``local-dir:...``, or ``demo``.
        checkpoint: a ``.safetensors`` file of any float type, or a ``.pth`` file (read with ``weights_only``); its keys must
            be the model's. Without it, the weights of the source are used (timm's ``pretrained=True``).
        num_classes: size of the head, where it is not the architecture's own.
        pretrained: False for random weights when there is no checkpoint.

    Raises:
        ModelError: the name is unknown, or its weights cannot be fetched.
        CheckpointError: the file is missing, corrupt, or does not fit the model.
    """
    name = f"local-dir:{DEMO}" if name == "demo" else name
    _check_name(name)
    weights = read_checkpoint(Path(checkpoint)) if checkpoint is not None else None
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained and weights is None, **arguments)
    except Exception as error:
        hint = "give the weights with --checkpoint FILE" if pretrained and weights is None else ""
        raise ModelError(f"timm cannot create {name!r}: {error}", hint) from error
    if weights is not None:
        _fit(model, weights, str(checkpoint))
    return model.float().eval()


def _check_name(name: str) -> None:
    try:
        source, rest = parse_model_name(name)
    except ValueError as error:
        raise ModelError(str(error)) from error
    if source == "local-dir" and not (Path(rest) / "config.json").is_file():
        raise ModelError(f"{rest!r} is not a timm model folder: it has no config.json")
    architecture = split_model_name_tag(rest)[0]
    if source is None and not is_model(architecture):
        near = difflib.get_close_matches(architecture, ["demo", *list_models()], n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "list the names with timm.list_models()"
        raise ModelError(f"timm has no model {architecture!r}", hint)


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` or ``.pth`` file, by name; the latter may hold nothing else that runs code.

    Raises:
        CheckpointError: the file is missing, or is neither.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {str(path)!r}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts store their arguments beside
            weights: dict[str, torch.Tensor] = load_state_dict(str(path), use_ema=False, device="cpu", weights_only=True)
        return weights
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the checkpoint {str(path)!r} cannot be read: {reason}",
            "it must be a .safetensors file, or a .pth file that holds tensors only",
        ) from error


def _fit(model: nn.Module, weights: Any, path: str) -> None:
    wanted = model.state_dict()
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f"the checkpoint {path!r} is not a state_dict (names to tensors)")
    problems = [f"{key} is missing" for key in wanted if key not in weights]
    problems += [f"{key} is not in the model" for key in weights if key not in wanted]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, the model {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the checkpoint {path!r} does not fit the model: {'; '.join(problems[:3])}{more}",
            "check the model's name, and --num-classes if the head differs",
        )
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in weights.items()})
