"""The embedded demo: a small timm ViT for Fashion-MNIST and a sample of its images, in ``zoo/demo/``.

The folder is an ordinary timm ``local-dir:`` model folder; ``examples/train_demo.py`` made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).with_name("demo")


def demo_images(split: Literal["train", "val"]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Images (bytes, ``[N, 28, 28]``) and labels ``[N]``: ``train`` to calibrate on, ``val`` to score, disjoint."""
    with np.load(FOLDER / "images.npz", allow_pickle=False) as archive:
        return archive[f"{split}_images"], archive[f"{split}_labels"]
