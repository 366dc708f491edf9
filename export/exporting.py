"""Exporting: a network as a folder that other machines read, with all that they have to know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArtifactError, ExportError
from ..files import check_output, whole_folder
from ..reading import parsed
from ..spiking import SpikingNetwork
from ..storage.versions import versions
from .graph import RunGraph, StepGraph
from .nir import write_nir
from .preprocessing import configuration, preprocessing
from .program import IMAGES, LOGITS, NEXT, OPSET, TIMESTEP, check_onnx, traced, write_onnx, write_pt2

DOCUMENT = "export.json"
FORMATS = ("onnx", "pt2", "nir")
FILES = {name: f"model.{name}" for name in FORMATS}


def export(
    network: SpikingNetwork, out: str | Path, format: str = "onnx", *, timesteps: int | None = None, step: bool = False,
    target: str | None = None, overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write a network into a folder, in a format that needs nothing of vit2snn to run, with ``export.json`` about it.

    * ``onnx`` and ``pt2`` (`torch.export.load`): a graph of ordinary operators for any number of images, in float32. It is a
      whole run, images ``[B, C, H, W]`` (frames ``[T, B, C, H, W]`` for networks of events) to the readout after each timestep
      ``[T, B, classes]``; or one timestep, which takes the timestep and the neurons' states as well and gives the states after
      it.
    * ``nir``: layers and neurons, for simulators and chips; see `vit2snn.export.nir`.

    Args:
        network: converted, or of the zoo.
        out: the folder.
        format: one of them.
        timesteps: T of a run; the network's unless given.
        step: write one timestep.
        target: of ``nir``: a chip (see `vit2snn.export.nir.TARGETS`); ``export.json`` lists what does not fit it.
        overwrite: replace an earlier export at ``out``.

    Returns:
        What is in ``export.json``.

    Raises:
        ExportError: the format cannot say the network, or a package for it is missing.
        OutputExistsError: ``out`` exists and ``overwrite`` is not set.
        ArtifactError: the folder cannot be written.
        ValueError: there is no such format, or T is below 1.
    """
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}; choose one of {', '.join(FORMATS)}")
    if format == "nir" and (step or timesteps):
        raise ValueError("a neuromorphic graph has no timesteps: simulators and chips run it for as many as they like")
    if format != "nir" and target:
        raise ValueError(f"chips take format 'nir', got target={target!r} and format {format!r}")
    out = Path(out)
    check_output(out, overwrite, is_export)
    with whole_folder(out) as folder:
        graph = format != "nir"
        told = _write_graph(network, folder, format, timesteps, step) if graph else write_nir(network, folder, target)
        document = {"format": format, **told, "versions": versions()}
        text = json.dumps(document, indent=2)
        (folder / DOCUMENT).write_text(text + "\n", encoding="utf-8")
    written: dict[str, Any] = json.loads(text)
    return written


def is_export(folder: Path) -> bool:
    """Whether `export` wrote a folder."""
    try:
        document = parsed(folder / DOCUMENT)
    except ArtifactError:
        return False
    return isinstance(document, dict) and document.get("format") in FORMATS and (folder / FILES[document["format"]]).is_file()


def _write_graph(network: SpikingNetwork, folder: Path, format: str, timesteps: int | None, step: bool) -> dict[str, Any]:
    if step and timesteps:
        raise ValueError(f"a graph of one timestep serves for any number of them, got timesteps={timesteps}")
    if format == "onnx":
        check_onnx()
    image, frames = _image(network), takes_frames(network)
    timesteps = timesteps or network.timesteps
    if not step and timesteps < 1:
        raise ExportError(
            "the network takes its timesteps from the frames that it gets", "say how many: --timesteps T, or --step"
        )
    graph = StepGraph(network, image) if step else RunGraph(network, timesteps)
    program = traced(graph, image, frames)
    told = _told(network, graph, image, frames)
    path = folder / FILES[format]
    if format == "pt2":
        write_pt2(program, path, told)
        return told
    write_onnx(program, path, graph.states if isinstance(graph, StepGraph) else [], told)
    return {"opset": OPSET, **told}


def takes_frames(network: SpikingNetwork) -> bool:
    """Whether a network is made for a frame each timestep: of events, whose polarities are its two channels."""
    return network.timesteps == 0 or getattr(network, "in_chans", 3) == 2


def _image(network: SpikingNetwork) -> Tensor:
    """An image of the network's size, ``[1, C, H, W]``."""
    size = getattr(network, "input_size", None) or configuration(network)["input_size"]
    return torch.zeros(1, *size)


def _told(network: SpikingNetwork, graph: nn.Module, image: Tensor, frames: bool) -> dict[str, Any]:
    """What a host has to know of a graph."""
    size = list(image.shape[1:])
    with torch.no_grad():
        classes = list(network.readout(image.to(next(iter(network.network.parameters()))), 1).shape[2:])
    told: dict[str, Any] = {
        "architecture": configuration(network).get("architecture"),
        "preprocessing": preprocessing(network),
    }
    if isinstance(graph, RunGraph):
        shape = ["T", "batch", *size] if frames else ["batch", *size]
        return told | {
            "graph": "run",
            "timesteps": graph.timesteps,
            "inputs": [{"name": IMAGES, "type": "float32", "shape": shape}],
            "outputs": [{"name": LOGITS, "type": "float32", "shape": ["T", "batch", *classes]}],
        }
    assert isinstance(graph, StepGraph)
    states = [{"name": state.name, "type": "float32", "shape": ["batch", *state.shape]} for state in graph.states]
    return told | {
        "graph": "step",
        "calibrated_timesteps": network.timesteps,
        "inputs": [
            {"name": IMAGES, "type": "float32", "shape": ["batch", *size]}, {"name": TIMESTEP, "type": "int64", "shape": []},
            *states,
        ],
        "outputs": [
            {"name": LOGITS, "type": "float32", "shape": ["batch", *classes]},
            *(state | {"name": f"{state['name']}{NEXT}"} for state in states),
        ],
    }  # fmt: skip
