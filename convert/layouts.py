"""Names of weights as other libraries give them, and timm's names for the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor

TRANSFORMERS = [
    (r"^(vit|deit|dinov2|swin)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^encoder\.layer\.", "blocks."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.attention\.(attention|self)\.(query|key|value)\.", r".attn.\2."),
    (r"\.attention\.self\.relative_position_bias_table$", ".attn.relative_position_bias_table"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
]  # fmt: skip
"""Of Hugging Face transformers: ViT, DeiT, DINOv2, Swin."""

UNREAD = re.compile(r"(^|\.)(embeddings\.mask_token|pooler\.dense\.(weight|bias)|relative_position_index)$")
"""What transformers stores, and no classifier or feature extractor computes with: or what follows from the sizes."""

TORCHVISION = [
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
]  # fmt: skip
"""Of torchvision's ViT."""


def as_timm(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Weights under timm's names, and the library whose names they had; as they are and ``""`` where that is none of these."""
    for name in weights:
        if name.endswith("embeddings.patch_embeddings.projection.weight"):
            outside = re.sub(r"((vit|deit|dinov2|swin)\.)?embeddings\.patch_embeddings\.projection\.weight$", "", name)
            return _of_transformers(within(weights, outside)), "transformers"
        if name.endswith("encoder.pos_embedding"):
            return _renamed(within(weights, name.removesuffix("encoder.pos_embedding")), TORCHVISION), "torchvision"
    return weights, ""


def within(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _renamed(weights: dict[str, Tensor], names: list[tuple[str, str]]) -> dict[str, Tensor]:
    found = {}
    for name, value in weights.items():
        for pattern, ours in names:
            name = re.sub(pattern, ours, name)
        found[name] = value
    return found


def _of_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    found = _renamed({name: value for name, value in weights.items() if not UNREAD.search(name)}, TRANSFORMERS)
    # A second token that no head reads is to timm a register.
    second = "dist_token" if "head_dist.weight" in found else "reg_token"
    staged = any(name.startswith("layers.") for name in found)
    named: dict[str, Tensor] = {}
    for name, value in found.items():
        name = second if name == "embeddings.distillation_token" else name
        if staged:  # timm's stages begin with the downsampling that those of transformers end with
            name = re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name)
            name = re.sub(r"^head\.", "head.fc.", name)
        named[name] = value
    return _fused(named)


def _fused(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """With one map for queries, keys and values."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        parts = [name.replace(".attn.query.", f".attn.{part}.") for part in ("query", "key", "value")]
        if ".attn.query." in name and all(part in weights for part in parts):
            found[name.replace(".attn.query.", ".attn.qkv.")] = torch.cat([weights[part] for part in parts])
        elif not re.search(r"\.attn\.(key|value)\.", name):
            found[name] = value
    return found


def prefixes(weights: Collection[str], wanted: Collection[str]) -> list[str]:
    """What stands in front of most of the names of a model: one prefix, or several for as many models in a file."""
    found: Counter[str] = Counter()
    for name in weights:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in wanted:
                found["".join(f"{part}." for part in parts[:depth])] += 1
    most = max(found.values(), default=0)
    leading = sorted(prefix for prefix, count in found.items() if count == most)
    return [""] if "" in leading or not leading else leading
