"""What becomes of an image before an exported network sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spiking import SpikingNetwork

KEYS = ("mean", "std", "interpolation", "crop_pct")
"""Of timm's configurations."""


def configuration(network: SpikingNetwork) -> Mapping[str, Any]:
    """timm's, of models that have one."""
    return getattr(network.network, "pretrained_cfg", None) or {}


def preprocessing(network: SpikingNetwork) -> dict[str, Any]:
    """How a host has to prepare images, as far as it is known."""
    found = configuration(network)
    return {key: found[key] for key in KEYS if found.get(key) is not None}
