"""Spiking networks in NIR, the neuromorphic intermediate representation.

Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 15, 2024.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.models.vision_transformer import VisionTransformer

from ...errors import ExportError
from ...spiking import SpikingNetwork, integer_weights
from ...zoo.network import SpikingTransformer
from ..preprocessing import preprocessing
from .converted import converted_logits
from .integers import fold_scales
from .neurons import RECIPE, STEP
from .nodes import INPUT, OUTPUT, Builder, Shape, installed
from .targets import TARGETS as TARGETS, check_target
from .zoo import zoo_logits

if TYPE_CHECKING:
    import nir

FILE = "model.nir"


def nir_graph(network: SpikingNetwork) -> nir.NIRGraph:
    """One timestep of a network as a graph: a preprocessed image, shown at every timestep, to the logits of that timestep.

    Only what is driven by binary spikes, and masks spikes by spikes, can be said; see docs/export.md. Nodes have the names of
    our modules. Input ``[C, H, W]``, output ``[classes, 1, 1]``. Weights of integers are written as such where a neuron reads
    them alone; its thresholds are over their scale.

    Raises:
        ExportError: NIR cannot say a module, which the message names; or the package `nir` is not installed.
    """
    module, build = network.network, Builder(_image(network))
    if type(module) is VisionTransformer:
        logits = converted_logits(build, module)
    elif isinstance(module, SpikingTransformer):
        logits = zoo_logits(build, module)
    else:
        raise ExportError(
            f"a {type(module).__name__} cannot be said in NIR: only timm's VisionTransformer and the zoo can", RECIPE
        )
    graph = build.graph(logits)
    weights = list(integer_weights(module).values())
    if weights:  # which all have the bits of the recipe
        fold_scales(graph, weights[0].integers.bits)
    return graph


def write_nir(network: SpikingNetwork, folder: Path, target: str | None = None) -> dict[str, Any]:
    """Write ``model.nir`` into an existing folder.

    Args:
        network: of which NIR can say all.
        folder: to write into.
        target: a chip (see `TARGETS`): the result also lists what does not fit it.

    Returns:
        What a host has to know to run it, for a JSON file: inputs, outputs, timesteps, how logits are read out, how images are
        prepared, and how simulators count time.

    Raises:
        ExportError: see `nir_graph`.
    """
    graph = nir_graph(network)
    installed().write(folder / FILE, graph)
    return {
        "file": FILE,
        "inputs": {INPUT: [int(side) for side in graph.nodes[INPUT].input_type["input"]]},
        "outputs": {OUTPUT: [int(side) for side in graph.nodes[OUTPUT].output_type["output"]]},
        "timesteps": network.timesteps,
        "readout": "the mean of the output over the timesteps so far",
        "preprocessing": preprocessing(network),
        "step_seconds": STEP,
        "edges": "without delay: all layers compute each timestep, in the order of the graph",
        **({"target": target, "does_not_fit": check_target(graph, target)} if target else {}),
    }


def _image(network: SpikingNetwork) -> Shape:
    module: Any = network.network
    config = getattr(module, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (0, 0, 0)
    if isinstance(module, VisionTransformer):
        height, width = module.patch_embed.img_size
        channels = module.patch_embed.proj.in_channels
    if not channels:
        raise ExportError(
            "the size of the network's images is not known", "create it by timm.create_model, or give it a pretrained_cfg"
        )
    return channels, height, width
