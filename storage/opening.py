"""Whatever spiking network is in a folder."""

from __future__ import annotations

from pathlib import Path

from ..convert import load_model
from ..errors import ModelError
from ..spiking import SpikingNetwork
from .artifact import load
from .folder import is_model_folder


def open_network(folder: str | Path, trust: str | None = None) -> SpikingNetwork:
    """The network in a folder, on the CPU, in evaluation mode: a converted one, or a model of the zoo.

    Args:
        folder: that `save` or `save_model` wrote.
        trust: of `load`.

    Raises:
        ArtifactError: it holds neither, or is damaged.
        ModelError: timm cannot make the model of the zoo.
    """
    folder = Path(folder)
    if not is_model_folder(folder):
        return load(folder, trust)
    model = load_model(f"local-dir:{folder}")
    if not isinstance(model, SpikingNetwork):
        raise ModelError(f"the model in {str(folder)!r} is a {type(model).__name__}, and no spiking network", "convert it")
    return model
