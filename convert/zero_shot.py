"""Classes that are given by text embeddings: the tower of a CLIP model as a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError, ModelError
from .checkpoints import read_checkpoint

NUMPY = b"\x93NUMPY"
HOW = "save a tensor [classes, D], of text embeddings in the order of the classes, with numpy.save or safetensors"


def zero_shot(model: Any, embeddings: Tensor) -> nn.Module:
    """Let the head of ``model`` give, of each class, how near its text is to an image, in place.

    The logits of an image are |f| cos(f, t_c) of what the model gave for it, f, and the text embedding t_c of class c. Their
    order is that of the cosines that CLIP ranks classes by (Radford et al., 2021, section 3.1). A projection that ends the
    model, as in timm's towers of CLIP, and the embeddings become one linear layer; a model without head, as those of SigLIP,
    gets one.

    Args:
        model: of timm, which gives embeddings ``[B, D]``.
        embeddings: ``[classes, D]``; or ``[classes, texts, D]`` of several texts for each class, whose directions are averaged.

    Returns:
        ``model``.

    Raises:
        ModelError: the embeddings are not of the size of the model's, or have no direction; or its head is not linear.
    """
    projection: Any = model.get_classifier() if hasattr(model, "get_classifier") else None
    is_linear = isinstance(projection, nn.Linear)
    if not is_linear and not (isinstance(projection, nn.Identity) and hasattr(model, "reset_classifier")):
        raise ModelError(
            f"the head of {type(model).__name__} is {type(projection).__name__}, and text embeddings need a linear one",
            "take an image tower of timm, such as vit_base_patch16_clip_224",
        )
    size = projection.out_features if is_linear else getattr(model, "head_hidden_size", model.num_features)
    directions = _directions(embeddings, size)
    with torch.no_grad():
        weight, bias = directions, torch.zeros(len(directions))
        if is_linear:
            weight = directions @ projection.weight.float()
            bias = bias if projection.bias is None else directions @ projection.bias.float()
        model.reset_classifier(len(directions))
        head = model.get_classifier()
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return model.eval()  # type: ignore[no-any-return]


def _directions(embeddings: Tensor, size: int) -> Tensor:
    """One of length 1 for each class."""
    shape = list(embeddings.shape)
    if embeddings.ndim not in (2, 3) or 0 in shape or not embeddings.is_floating_point():
        raise ModelError(f"text embeddings must be floats of shape [classes, {size}], got {embeddings.dtype} of {shape}", HOW)
    if shape[-1] != size:
        turned = embeddings.ndim == 2 and shape[0] == size
        raise ModelError(
            f"the model gives embeddings of {size} numbers, and those of the texts have {shape[-1]}: {shape}",
            "transpose them" if turned else "take the texts' embeddings from the model that the images' tower belongs to",
        )
    embeddings = embeddings.float()
    if not embeddings.isfinite().all() or (embeddings.norm(dim=-1) == 0).any():
        raise ModelError("some text embedding is not finite, or zero, and has no direction", HOW)
    unit = F.normalize(embeddings, dim=-1)
    return unit if unit.ndim == 2 else F.normalize(unit.mean(1), dim=-1)


def read_embeddings(path: Path) -> Tensor:
    """The text embeddings in a file: the one tensor of a ``.npy`` file, of safetensors, or of a dictionary of ``torch.save``.

    Raises:
        CheckpointError: the file is missing, is none of these, or holds several tensors.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(NUMPY)) == NUMPY:
                return _numpy(path)
    found = read_checkpoint(path)
    if len(found) != 1:
        raise CheckpointError(f"{str(path)!r} holds {len(found)} tensors ({', '.join(list(found)[:3])}), not one", HOW)
    return next(iter(found.values()))


def _numpy(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0][:160]}", HOW) from error
