"""Weights into a timm model: found under the names of wrappers and of other libraries, complete or refused."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import model_entrypoint
from torch import Tensor, nn

from ..errors import CheckpointError
from .layouts import as_timm, prefixes, within

TORCHVISION_CFG = {
    "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bilinear", "crop_pct": 0.875,
}  # fmt: skip
"""How torchvision prepares images for its ViTs of 224 x 224."""

logger = logging.getLogger("vit2snn")


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path, ema: bool = False, resample: bool = False) -> None:
    """Put the weights of a file into a model.

    Args:
        model: changed in place; weights become float32 or the type that the model has.
        weights: of `read_checkpoint`.
        path: what to call the file.
        ema: of two models in the file, take the one whose name says ``ema``.
        resample: position embeddings of another image size are resampled, as timm does.

    Raises:
        CheckpointError: something is missing, left over, of another shape or type.
    """
    wanted = model.state_dict()
    weights, library = as_timm(weights)
    weights = _headless(model, _own(weights, wanted, path, ema))
    if _problems(wanted, weights):
        adapted = _adapted(model, weights)
        resampled = [name for name in wanted if name in weights and name in adapted and _resized(weights[name], adapted[name])]
        if not _problems(wanted, adapted) and (not resampled or (resample and all("pos" in name for name in resampled))):
            _tell(path, resampled)
            weights = adapted
    problems = _problems(wanted, weights)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the checkpoint {str(path)!r} does not fit the model: {'; '.join(problems[:3])}{more}", _hint(model, weights)
        )
    if library:
        logger.warning("note: %s has the names of %s, which are taken for timm's", path, library)
    if library == "torchvision":
        model.pretrained_cfg = {**_cfg(model), **TORCHVISION_CFG}  # type: ignore[assignment]
        logger.warning(
            "note: images are prepared as torchvision does for vit_b_16: resized to 256, cropped to 224, ImageNet's mean"
        )
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in weights.items()})


def _own(weights: dict[str, Tensor], wanted: dict[str, Tensor], path: Path, ema: bool) -> dict[str, Tensor]:
    """Without what wrappers have put in front of names, and without what is not the model's beside it."""
    found = prefixes(weights, wanted)
    if len(found) > 1:
        found = [prefix for prefix in found if ("ema" in prefix) == ema] or found
    if len(found) > 1:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} holds {len(found)} models: {', '.join(prefix.rstrip('.') for prefix in found)}",
            "save the weights of one: torch.save(model.state_dict(), FILE)",
        )
    prefix = found[0]
    if not prefix:
        return weights
    beside = [name for name in weights if not name.startswith(prefix)]
    what = f", and {len(beside)} tensors beside them are left out ({', '.join(beside[:3])})" if beside else ""
    logger.warning("note: %s has the model's weights under %r%s", path, prefix.rstrip("."), what)
    return within(weights, prefix)


def _cfg(model: nn.Module) -> dict[str, Any]:
    return dict(getattr(model, "pretrained_cfg", None) or {})


def _heads(model: nn.Module) -> tuple[str, ...]:
    """The names of the classifiers."""
    heads = _cfg(model).get("classifier") or ()
    return (heads,) if isinstance(heads, str) else tuple(heads)


def _headless(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the head, if the model shall have none."""
    if getattr(model, "num_classes", None) != 0:
        return weights
    heads = {f"{head}.{part}" for head in _heads(model) for part in ("weight", "bias")}
    return {name: value for name, value in weights.items() if name not in heads}


def _adapted(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What timm makes of the authors' own files, and of other image sizes; the weights as they are where it cannot."""
    architecture = str(_cfg(model).get("architecture"))
    try:
        modules = [sys.modules[model_entrypoint(architecture).__module__], sys.modules[type(model).__module__]]
        adapt = next(module.checkpoint_filter_fn for module in modules if hasattr(module, "checkpoint_filter_fn"))
        return dict(adapt(dict(weights), model))
    except Exception:  # written for files of known authors, on others it fails in any way
        return weights


def _resized(before: Tensor, after: Tensor) -> bool:
    return before.numel() != after.numel()


def _tell(path: Path, resampled: list[str]) -> None:
    what = f"resampled to the image size: {', '.join(resampled[:3])}" if resampled else "adapted by timm"
    logger.warning("note: the weights of %s are %s", path, what)


def _problems(wanted: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    problems = [f"{key} is missing" for key in wanted if key not in weights]
    problems += [f"{key} is not in the model" for key in weights if key not in wanted]
    for key, value in wanted.items():
        if key not in weights:
            continue
        given = weights[key]
        if given.shape != value.shape:
            problems.append(f"{key} has shape {tuple(given.shape)}, the model {tuple(value.shape)}")
        elif given.is_floating_point() != value.is_floating_point():
            problems.append(f"{key} has numbers of {given.dtype}, the model of {value.dtype}")
    return problems


def _hint(model: nn.Module, weights: dict[str, Tensor]) -> str:
    """What resolves it: another head, another image size, or another name."""
    wanted = model.state_dict()
    other = {name for name in wanted if name in weights and weights[name].shape != wanted[name].shape}
    head = next((f"{name}.weight" for name in _heads(model) if f"{name}.weight" in other), None)
    if head:
        return f"the head of the checkpoint has another size: --num-classes {len(weights[head])}"
    if any("pos" in name for name in other):
        size = _image_size(model, weights)
        return f"the checkpoint is of another image size: --img-size {size or 'SIZE'}"
    return "check the model's name, and --num-classes if the head differs"


def _image_size(model: Any, weights: dict[str, Tensor]) -> int | None:
    """The side of square images whose patches have the position embeddings of a checkpoint."""
    if "pos_embed" not in weights or not hasattr(model, "num_prefix_tokens"):
        return None
    tokens = weights["pos_embed"].shape[1] - (0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens)
    side = round(max(tokens, 0) ** 0.5)
    return int(side * model.patch_embed.patch_size[0]) if side**2 == tokens else None
