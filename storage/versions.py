"""Versions of everything that decides a result."""

from __future__ import annotations

import platform
from importlib import metadata

import safetensors
import timm
import torch


def versions() -> dict[str, str]:
    """Versions of everything that decides a result."""
    return {
        "vit2snn": metadata.version("vit2snn"),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
    }
