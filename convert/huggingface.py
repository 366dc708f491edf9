"""Model folders of Hugging Face transformers (ViT, DeiT, DINOv2, Swin), made by timm where it has the same architecture."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.layers import LayerNorm
from timm.models import build_model_with_cfg, parse_model_name, register_model
from timm.models._hub import download_from_hf
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..errors import CheckpointError, ModelError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PREPROCESSOR = "preprocessor_config.json"
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu",
    "silu": "silu", "swish": "silu",
}  # fmt: skip
"""Activation functions by transformers' names, and timm's names."""

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers."""

INCEPTION: tuple[tuple[float, ...], ...] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET: tuple[tuple[float, ...], ...] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

logger = logging.getLogger("vit2snn")


@register_model  # type: ignore[untyped-decorator]
def transformers_vit(
    pretrained: bool = False, layer_norm_eps: float = 1e-12, distilled: bool = False, **arguments: Any
) -> VisionTransformer:
    """timm's ViT with the LayerNorm of transformers, whose eps is another one. ``distilled``: two heads, as DeiT has."""
    kind = VisionTransformerDistilled if distilled else VisionTransformer
    norm = partial(LayerNorm, eps=layer_norm_eps)
    model: VisionTransformer = build_model_with_cfg(kind, "transformers_vit", pretrained, norm_layer=norm, **arguments)
    return model


def find_folder(name: str, weights: bool) -> Path | None:
    """The folder of a model of transformers; from the hub it is fetched. None where the name is of something else.

    Args:
        name: ``local-dir:PATH`` or ``hf-hub:NAME``.
        weights: fetch them too.
    """
    source, rest = parse_model_name(name)
    if source == "hf-hub":
        folder = Path(download_from_hf(rest, "config.json")).parent
        if _is_ours(folder):
            _fetch(rest, (PREPROCESSOR,))
            if weights and not _fetch(rest, ("model.safetensors", "pytorch_model.bin")):
                raise ModelError(
                    f"no weights of {name!r} can be fetched: neither model.safetensors nor pytorch_model.bin",
                    "check the connection; if its weights are in several files, fetch all, and give local-dir:FOLDER",
                )
    else:
        folder = Path(rest)
    return folder if source and _is_ours(folder) else None


def _fetch(repository: str, files: tuple[str, ...]) -> bool:
    """Fetch the first of some files that is there."""
    from huggingface_hub.errors import EntryNotFoundError

    for file in files:
        try:
            download_from_hf(repository, file)
            return True
        except EntryNotFoundError:
            continue
    return False


def _is_ours(folder: Path) -> bool:
    config = _json(folder / "config.json")
    return "architecture" not in config and bool({"model_type", "architectures", "transformers_version"} & set(config))


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def weight_file(folder: Path) -> Path:
    """The file of weights in a folder of transformers.

    Raises:
        CheckpointError: there is none.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"the transformers folder {str(folder)!r} has no weights",
            f"it needs one of {', '.join(WEIGHTS)}; or give --checkpoint",
        )
    return found


def create(folder: Path, img_size: int | None = None, num_classes: int | None = None) -> nn.Module:
    """The model that a folder of transformers describes, with random weights.

    Args:
        folder: with a ``config.json``, and a ``preprocessor_config.json`` that tells how images are prepared.
        img_size: instead of the model's own.
        num_classes: must be the model's own, or 0 for the features in front of the head.

    Raises:
        ModelError: timm has no such architecture, or the configuration is damaged.
    """
    config = _json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise _refused(folder, f"its model_type is {kind!r}, and only {', '.join(ARCHITECTURES)} are known")
    try:
        name, arguments, head = ARCHITECTURES[kind](config)
        own = _classes(config)
        if num_classes not in (None, 0, own):
            raise ModelError(
                f"the head of {str(folder)!r} has {own} classes, and {num_classes} are asked for: the new head would be random",
                "fine-tune the model to the new classes first, or leave --num-classes out",
            )
        size, channels = img_size or config["image_size"], int(config.get("num_channels", 3))
        classes = own if num_classes is None else num_classes
        cfg = {
            "architecture": name, "num_classes": classes, "first_conv": "patch_embed.proj", "classifier": head,
            "fixed_input_size": True, **_preprocessing(folder, kind, channels, size),
        }  # fmt: skip
        activation = ACTIVATIONS[str(config.get("hidden_act", "gelu"))]
        extra: dict[str, Any] = {} if activation == "gelu" else {"act_layer": activation}
        extra |= {} if config.get("qkv_bias", True) else {"qkv_bias": False}
        model: nn.Module = timm.create_model(
            name, pretrained_cfg=cfg, num_classes=classes, in_chans=channels, img_size=size, **arguments, **extra
        )
        _check_windows(model)
        return model
    except KeyError as error:
        raise _refused(folder, f"its config.json has no {error}, or a value that is not known") from error
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError, AttributeError) as error:
        raise _refused(folder, f"{' '.join(str(error).split())[:300]}") from error


def _check_windows(model: nn.Module) -> None:
    """Refuse a Swin whose windows do not fill its stages: timm pads these after it has shifted them, transformers before."""
    for module in model.modules():
        if isinstance(module, SwinTransformerBlock):
            ragged = [side for side, window in zip(module.input_resolution, module.window_size, strict=True) if side % window]
            if ragged:
                raise ValueError(f"windows of {module.window_size[0]} do not fill a stage of {ragged[0]}")


def _refused(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"{str(folder)!r} holds a model of Hugging Face transformers, which timm cannot make: {why}",
        "give timm's model of that name, or convert the Python object: vit2snn.to_spiking(model, images=...) takes any module "
        "from one image tensor to one output tensor",
    )


def _classes(config: dict[str, Any]) -> int:
    """0 without a classifier."""
    if not any("ForImageClassification" in str(name) for name in config.get("architectures") or ()):
        return 0
    return len(config.get("id2label") or ()) or int(config.get("num_labels", 2))


def _vit(config: dict[str, Any]) -> tuple[str, dict[str, Any], str | tuple[str, ...]]:
    """ViT and DINOv2: what timm's is called, its arguments, and its heads."""
    width = config["hidden_size"]
    arguments = {
        "patch_size": config["patch_size"],
        "embed_dim": width,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": _ratio(config["intermediate_size"], width) if "intermediate_size" in config else 4.0,
        "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
    }
    return "transformers_vit", arguments, "head"


def _deit(config: dict[str, Any]) -> tuple[str, dict[str, Any], str | tuple[str, ...]]:
    """With a distillation token, which is a register where it has no head."""
    name, arguments, head = _vit(config)
    if any("WithTeacher" in str(kind) for kind in config.get("architectures") or ()):
        return name, arguments | {"distilled": True}, (str(head), "head_dist")
    return name, arguments | {"reg_tokens": 1}, head


def _dinov2(config: dict[str, Any]) -> tuple[str, dict[str, Any], str | tuple[str, ...]]:
    if config.get("use_swiglu_ffn"):
        raise ValueError("perceptrons with SwiGLU are not read; timm has vit_giant_patch14_dinov2")
    if _classes(config):
        raise ValueError("its classifier reads the class token beside the mean of the others, as no model of timm does")
    name, arguments, head = _vit(config)
    ratio, eps = float(config.get("mlp_ratio", 4)), config.get("layer_norm_eps", 1e-6)
    return name, arguments | {"mlp_ratio": ratio, "layer_norm_eps": eps, "init_values": 1.0}, head


def _swin(config: dict[str, Any]) -> tuple[str, dict[str, Any], str | tuple[str, ...]]:
    if config.get("use_absolute_embeddings") or config.get("layer_norm_eps", 1e-5) != 1e-5:
        raise ValueError("timm's Swin has no absolute position embeddings, and a layer_norm_eps of 1e-05")
    arguments = {
        "patch_size": config["patch_size"],
        "embed_dim": config["embed_dim"],
        "depths": tuple(config["depths"]),
        "num_heads": tuple(config["num_heads"]),
        "window_size": config["window_size"],
        "mlp_ratio": float(config.get("mlp_ratio", 4)),
    }
    return "swin_tiny_patch4_window7_224", arguments, "head.fc"


ARCHITECTURES: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any], str | tuple[str, ...]]]] = {
    "vit": _vit,
    "deit": _deit,
    "dinov2": _dinov2,
    "swin": _swin,
}
"""By ``model_type``."""


def _ratio(hidden: int, width: int) -> float:
    """Of the widths of a perceptron; timm makes ``int(width * ratio)`` of it."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _preprocessing(folder: Path, kind: str, channels: int, size: int | list[int]) -> dict[str, Any]:
    """How images are prepared, in timm's words: input size, mean, std, interpolation and crop."""
    given = _json(folder / PREPROCESSOR)
    mean, std = INCEPTION if kind == "vit" else IMAGENET  # transformers' defaults
    if not given:
        usual = f"mean {mean} and std {std}, as is usual for {kind}"
        logger.warning("note: %s has no %s; images are normalised by %s", folder, PREPROCESSOR, usual)
    if given.get("do_rescale", True) and abs(given.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ValueError(f"rescale_factor in {PREPROCESSOR} is {given['rescale_factor']}, and 1/255 was expected")
    if not given.get("do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean, std = (tuple(given.get(f"image_{name}", default)) for name, default in (("mean", mean), ("std", std)))
    height, width = (size, size) if isinstance(size, int) else size
    resized, cropped = given.get("size", {}), given.get("crop_size", {})
    squashed = isinstance(resized, dict) and "shortest_edge" not in resized and not given.get("do_center_crop", False)
    edge = resized.get("shortest_edge", resized.get("height", 0)) if isinstance(resized, dict) else resized
    inner = cropped.get("height", 0) if isinstance(cropped, dict) else cropped
    crop = inner / edge if given.get("do_center_crop") and inner and edge else 1.0
    return {
        "input_size": (channels, height, width),
        "mean": mean,
        "std": std,
        "interpolation": INTERPOLATIONS.get(given.get("resample", 3 if kind in ("deit", "dinov2", "swin") else 2), "bicubic"),
        "crop_pct": crop,
        "crop_mode": "squash" if squashed else "center",
    }
