"""Whatever spiking network is in a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import ArtifactError, ModelError
from ..reading import LONGEST, read_json
from ..spiking import SpikingNetwork, prepare_process
from .artifact import load
from .building import FOREIGN, WEIGHTS, check_size, create, reason
from .folder import is_model_folder
from .hub import find
from .schema import ZooConfig
from .tensors import read_tensors

AGAIN = "train, create or import the model again"


def open_network(folder: str | Path, trust: str | None = None) -> SpikingNetwork:
    """The network in a folder, on the CPU, in evaluation mode: a converted one, or a model of the zoo.

    Args:
        folder: that `save` or `save_model` wrote, or ``hf-hub:USER/NAME[@REVISION]``.
        trust: of `load`.

    Raises:
        ArtifactError: it holds neither, or is damaged.
        HubError: the hub has no such model, or cannot be reached.
        ModelError: it is no spiking network.
    """
    folder = find(folder).folder
    if not is_model_folder(folder):
        return load(folder, trust)
    prepare_process()
    with torch.random.fork_rng([]):  # of weights that are about to be replaced
        model = _model(folder)
    if not isinstance(model, SpikingNetwork):
        raise ModelError(f"the model in {str(folder)!r} is a {type(model).__name__}, and no spiking network", "convert it")
    return model


def _model(folder: Path) -> nn.Module:
    file = folder / "config.json"
    config = read_json(file, ZooConfig, AGAIN)
    check_size(config, folder / WEIGHTS, AGAIN)
    try:
        model = create(config).float().eval()
    except FOREIGN as error:
        raise ArtifactError(f"{str(file)!r} describes no model: {reason(error)}", AGAIN) from error
    if getattr(model, "timesteps", 0) > LONGEST:
        raise ArtifactError(
            f"{str(file)!r} describes a model of {model.timesteps} timesteps, expected {LONGEST} at most", AGAIN
        )
    read_tensors(model, folder / WEIGHTS, AGAIN)
    return model
