"""The ANN by name, with its weights."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any

import timm
from timm.layers import PatchEmbed
from timm.models import is_model, list_models, parse_model_name, resolve_model_input_args, split_model_name_tag
from torch import nn

from ..errors import ModelError, Vit2SnnError
from ..zoo.demo import FOLDER as DEMO
from . import huggingface
from .checkpoints import read_checkpoint
from .loading import load_weights

logger = logging.getLogger("vit2snn")


def load_model(
    name: str,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    pretrained: bool = True,
    *,
    img_size: int | None = None,
    ema: bool = True,
    new_head: bool = False,
) -> nn.Module:
    """A timm model in evaluation mode, float32.

    Args:
        name: a timm name with or without tag, ``hf-hub:...``, ``local-dir:...`` (of timm, or of Hugging Face transformers where
            timm has the architecture), or ``demo``.
        checkpoint: a file of weights of any float type (see `read_checkpoint`), with timm's names or those of transformers or
            torchvision, also as a training script stored it. Without it, the weights of the source are used (timm's
            ``pretrained=True``).
        num_classes: size of the head, where it is not the architecture's own; 0 for the features in front of it.
        pretrained: False for random weights when there is no checkpoint.
        img_size: side of the images, where it is not the model's own; position embeddings are resampled, as timm does.
        ema: of a checkpoint that has moving averages of the weights, take these.
        new_head: a head that is not of the size of that of the weights is random, to be trained; it is refused otherwise.

    Raises:
        ModelError: the name is unknown, its weights cannot be fetched, or their head has another size.
        CheckpointError: the file is missing, corrupt, or does not fit the model.
    """
    name = f"local-dir:{DEMO}" if name == "demo" else name
    _check_name(name)
    file = Path(checkpoint) if checkpoint is not None else None
    weights = read_checkpoint(file, ema) if file else None
    own = pretrained and file is None
    try:
        folder = huggingface.find_folder(name, own)
        if folder:
            model = huggingface.create(folder, img_size, num_classes)
            file = huggingface.weight_file(folder) if own else file
            weights = read_checkpoint(file) if own and file else weights
        else:
            model = _create(name, own, num_classes, img_size, new_head)
    except Vit2SnnError:
        raise
    except Exception as error:
        hint = "give the weights with --checkpoint FILE" if own else ""
        if name.startswith("hf-hub:"):
            hint = "check the name and the connection; what lies in a folder is local-dir:FOLDER"
        raise ModelError(f"timm cannot create {name!r}: {' '.join(str(error).split())[:400]}", hint) from error
    if weights is not None and file is not None:
        load_weights(model, weights, file, ema, resample=img_size is not None)
    _match_channels(model, name)
    if img_size is not None:
        _tell_edge(model, img_size)
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


def _create(name: str, pretrained: bool, num_classes: int | None, img_size: int | None, new_head: bool) -> nn.Module:
    """timm's model, with the weights of its source if ``pretrained``."""
    resolved = resolve_model_input_args(name, {"img_size": img_size}, num_classes=num_classes)
    cfg = resolved["pretrained_cfg"]
    wanted, there = resolved.get("num_classes", cfg["num_classes"]), cfg["num_classes"]
    if pretrained and not new_head and wanted not in (0, there):
        raise ModelError(
            f"the weights of {name!r} have a head of {there} classes, and {wanted} are asked for: the new head would be random",
            "fine-tune the model to the new classes first and give --checkpoint FILE, or leave --num-classes out",
        )
    arguments: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if img_size is not None:
        arguments["pretrained_cfg_overlay"] = {"input_size": (cfg["input_size"][0], img_size, img_size), "pool_size": None}
        arguments |= {"img_size": img_size} if "img_size" in resolved else {}
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    return model


def _tell_edge(model: nn.Module, img_size: int) -> None:
    """Note what of images of that side no patch covers."""
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad:
        return
    patch = max(embed.patch_size)
    if img_size % patch:
        logger.warning(
            "note: of %d pixels a side, patches of %d leave out the last %d: --img-size %d has as many patches",
            img_size, patch, img_size % patch, img_size - img_size % patch,
        )  # fmt: skip


def _match_channels(model: Any, name: str) -> None:
    """Let a model of gray images have one mean and std, where its description has those of three colours, as timm leaves it.

    Raises:
        ModelError: there are neither as many as channels, nor can that be done.
    """
    cfg, channels = getattr(model, "pretrained_cfg", None) or {}, getattr(model, "in_chans", 3)
    for key in ("mean", "std"):
        given = cfg.get(key) or ()
        if len(given) in (0, 1, channels):
            continue
        if channels != 1:
            raise ModelError(
                f"the description of {name!r} has a {key} of {len(given)} channels, and the model takes {channels}",
                "correct pretrained_cfg in its config.json",
            )
        cfg = {**cfg, key: (sum(given) / len(given),)}
        if len(set(given)) > 1:
            logger.warning("note: gray images are normalised by the %s of three colours, %.3f", key, cfg[key][0])
    if cfg:
        model.pretrained_cfg = cfg
