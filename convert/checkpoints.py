"""Files of weights: what is in them, whoever wrote them. Nothing that a file holds is run."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError

AVERAGED = ("state_dict_ema", "model_ema")
"""Keys of moving averages of weights, in the order in which timm looks for them."""

PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "weights")
"""Keys under which training scripts store weights beside other things."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into names, anywhere in them."""

DEPTH = 4  # of dictionaries in dictionaries
SHOWN = 5

logger = logging.getLogger("vit2snn")


def read_checkpoint(path: Path, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name: a state_dict, on its own or in what a training script stored.

    Args:
        path: a ``.safetensors`` file, its ``.index.json`` beside the parts, or what ``torch.save`` wrote; the content counts,
            not the suffix.
        ema: take moving averages of weights where there are some, and the plain ones elsewhere; False: the other way round.

    Raises:
        CheckpointError: the file is missing, is no such file, or holds no state_dict; or it holds objects that would run code.
    """
    if path.is_dir():
        raise CheckpointError(
            f"the checkpoint {str(path)!r} is a folder",
            f"name the file of weights in it, or give it as MODEL: local-dir:{path}",
        )
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {str(path)!r}")
    try:
        reason, hint = _foreign(path)
        if reason:
            raise CheckpointError(f"the checkpoint {str(path)!r} cannot be read: {reason}", hint)
        document = _document(path)
    except CheckpointError:
        raise
    except Exception as error:  # of a damaged file the readers raise whatever comes
        raise _unreadable(path, error) from error
    weights = _state_dict(document, path, ema)
    for name in WRAPPERS:
        weights = {key.replace(name, ""): value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if key != "n_averaged"}  # of torch.optim.swa_utils


def _foreign(path: Path) -> tuple[str, str]:
    """Why a file is none of weights by name, and what to do, as far as its first bytes tell."""
    if not path.stat().st_size:
        return "it is empty", "copy or download it again"
    if not zipfile.is_zipfile(path):
        return "", ""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        return (
            "it is a TorchScript program, which is not run",
            "save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
        )
    if any(name.endswith(".npy") for name in names):
        return (
            "it holds NumPy arrays",
            "let timm read it: torch.save(timm.create_model(NAME, checkpoint_path=FILE).state_dict(), NEW)",
        )
    return "", ""


def _document(path: Path) -> Any:
    """What the file holds."""
    if path.name.endswith(".index.json"):
        return _parts(path)
    # Training scripts store their arguments beside.
    with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
        if file.read(9)[8:] == b"{":  # safetensors: the length of a JSON header, and the header
            return load_file(path)
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _parts(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names, which lie beside it."""
    files = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    for name in files:
        if Path(name).name != name or name.endswith(".index.json") or not (index.parent / name).is_file():
            raise CheckpointError(
                f"the checkpoint {str(index)!r} names a part {name!r} that does not lie beside it", "copy all its parts there"
            )
    found: dict[str, Tensor] = {}
    for name in files:
        found |= read_checkpoint(index.parent / name)
    return found


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """What to say of a file that its reader has given up."""
    what = f"the checkpoint {str(path)!r} cannot be read"
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return CheckpointError(
            f"{what}: it holds Python objects ({found[1]}), and making them would run code",
            "save the weights alone where it was made: torch.save(model.state_dict(), FILE)",
        )
    # What is said of pickles is advice to run them.
    said = "" if isinstance(error, pickle.UnpicklingError) or not str(error) else f" ({str(error).splitlines()[0][:160]})"
    return CheckpointError(
        f"{what}: it is damaged, or neither a file of safetensors nor one of torch.save{said}", "copy or download it again"
    )


def _state_dict(document: Any, path: Path, ema: bool) -> dict[str, Tensor]:
    """The one state_dict in what a file holds."""
    found, taken = document, ""
    for _ in range(DEPTH):
        order = AVERAGED + PLAIN if ema else PLAIN + AVERAGED
        there = [key for key in order if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
        if not there:
            break
        if any(key in AVERAGED for key in there) and any(key in PLAIN for key in there):
            other = "--no-ema takes the others" if ema else "the averaged ones are left out"
            logger.warning("note: %s has plain and averaged weights; those of %r are taken (%s)", path, there[0], other)
        found, taken = found[there[0]], there[0]
    where = f" under {taken!r}" if taken else ""
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"the checkpoint {str(path)!r} holds a {type(found).__name__}, and is not a state_dict (names to tensors)",
            "save the weights: torch.save(model.state_dict(), FILE)",
        )
    others = [str(key) for key, value in found.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if others or not found:
        told = f"{_some(others)} {'are' if len(others) > 1 else 'is'} no tensor" if others else "it is empty"
        raise CheckpointError(
            f"what the checkpoint {str(path)!r} holds{where} is not a state_dict (names to tensors): {told}",
            f"save the weights alone, or under one of the keys {', '.join(PLAIN[:4])}",
        )
    return dict(found)


def _some(names: Iterable[str]) -> str:
    """The first few of some names."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
