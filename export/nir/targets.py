"""What of a NIR graph does not fit a neuromorphic chip, by what is publicly documented of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ExportError
from .integers import scales_of

if TYPE_CHECKING:
    import nir


WEIGHT = MEMBRANE = 4
"""Bytes of a number of single precision."""


@dataclass(frozen=True)
class Target:
    """Limits of a chip; None where there is none, or none is public.

    Attributes:
        weight_bits: of a weight, signed; one scale for each output channel. None for single precision. Constants are no weights
            but biases.
        neurons: of all cores.
        synapses: of all cores, where shared weights count as often as they are used.
        cores: that each hold a layer of neurons.
        memory: bytes of all cores, for weights, each once, and membranes of four bytes.
        side_in: of an input map.
        side_out: of an output map.
        channels: of a map.
        kernel: side of a convolution.
        strides: of a convolution.
        padding: of a convolution.
        pools: sides of sum pooling.
        fan_out: layers that one layer sends to.
        leaks: whether neurons may leak a share of their membrane.
        sends_currents: whether a layer may send more than binary spikes, as sums of several layers do.
    """

    weight_bits: int | None = None
    neurons: int | None = None
    synapses: int | None = None
    cores: int | None = None
    memory: int | None = None
    side_in: int | None = None
    side_out: int | None = None
    channels: int | None = None
    kernel: int | None = None
    strides: tuple[int, ...] | None = None
    padding: int | None = None
    pools: tuple[int, ...] | None = None
    fan_out: int | None = None
    leaks: bool = True
    sends_currents: bool = True


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "loihi2": Target(weight_bits=8, neurons=2**20, synapses=120_000_000),
        "speck": Target(
            weight_bits=8, neurons=328_000, cores=9, side_in=128, side_out=64, channels=1024, kernel=16, strides=(1, 2, 4, 8),
            padding=7, pools=(1, 2, 4), fan_out=2, leaks=False, sends_currents=False,
        ),
        "spinnaker2": Target(memory=152 * 128 * 2**10),
    }
)  # fmt: skip
"""By name. Sources:

* ``loihi2``: a million neurons and 120 million synapses in 128 cores, graded spikes: Open Neuromorphic, "Loihi 2 - Intel" (its
  hardware guide). That page allows weights of up to 32 bits; a byte is what 120 million of them have place for. No public
  page that we found gives the axons of a core.
* ``speck``: "Chip resources" and "Available operations" in the documentation of sinabs (docs/speck): 9 layers, weights of 8
  bits, maps in and out, kernel, stride, padding, pooling, a fan-out of 2, integrate-and-fire with a constant leak alone; 328k
  neurons: Open Neuromorphic, "Speck - SynSense". The memory of each of its layers is given in a picture only, and not checked.
* ``spinnaker2``: "SpiNNaker2 datasheet", version 0.03, 2021: 152 Cortex M4F processors of 128 Kbytes each, which compute in
  single precision too; their programs decide on all else. What else a program needs, and external memory, is not counted.
"""


def check_target(graph: nir.NIRGraph, name: str) -> list[str]:
    """What of a graph does not fit a chip, a line for each; an empty list says that nothing is known to be in the way.

    Args:
        graph: of `vit2snn.export.nir.nir_graph`.
        name: in `TARGETS`.

    Raises:
        ExportError: there is no such target.
    """
    if name not in TARGETS:
        raise ExportError(f"there is no target {name!r}", f"choose one of {', '.join(TARGETS)}")
    return [*_totals(graph, TARGETS[name]), *_layers(graph, TARGETS[name])]


def _totals(graph: nir.NIRGraph, target: Target) -> Iterator[str]:
    nodes = graph.nodes.values()
    layers = [node for node in nodes if _fires(node)]
    neurons = sum(int(node.v_threshold.size) for node in layers)
    counted = {
        "neurons": (neurons, target.neurons),
        "synapses": (sum(_weights(node) * int(np.prod(node.output_type["output"][1:])) for node in nodes), target.synapses),
        "layers of neurons": (len(layers), target.cores),
        "bytes": (sum(_weights(node) for node in nodes) * WEIGHT + neurons * MEMBRANE, target.memory),
    }
    for what, (count, most) in counted.items():
        if most is not None and count > most:
            yield f"{count:,} {what}, and the chip has {most:,}"


def _layers(graph: nir.NIRGraph, target: Target) -> Iterator[str]:
    kinds = {node: type(graph.nodes[node]).__name__ for node in graph.nodes}
    for name, node in graph.nodes.items():
        receivers = [receiver for source, receiver in graph.edges if source == name]
        if kinds[name] == "Conv2d":
            yield from (f"{name}: {problem}" for problem in _convolution(node, target, _is_constant(graph, name)))
        if kinds[name] == "SumPool2d" and target.pools is not None and int(max(node.kernel_size)) not in target.pools:
            yield f"{name}: sums over {int(max(node.kernel_size))} positions, and the chip pools {target.pools}"
        if kinds[name] == "LIF" and not target.leaks:
            yield f"{name}: leaks a share of its membrane, and the chip's neurons do not"
        if target.fan_out is not None and _fires(node) and len(receivers) > target.fan_out:
            yield f"{name}: is sent to {len(receivers)} layers, and the chip sends to {target.fan_out}"
        sums = [receiver for receiver in receivers if kinds[receiver] in ("Conv2d", "SumPool2d")]
        if not target.sends_currents and not _fires(node) and kinds[name] != "Input" and sums:
            yield f"{name}: its currents go to {sums[0]}, and the chip sends binary spikes alone"


def _convolution(node: Any, target: Target, is_constant: bool) -> Iterator[str]:
    outputs, inputs, *kernel = node.weight.shape
    sides_in, sides_out = node.input_type["input"][1:], node.output_type["output"][1:]
    limits = {
        "side of its input": (int(max(sides_in)), target.side_in),
        "side of its output": (int(max(sides_out)), target.side_out),
        "channels": (max(outputs, inputs), target.channels),
        "side of its kernel": (max(kernel), target.kernel),
        "padding": (int(max(node.padding)), target.padding),
    }
    for what, (value, most) in limits.items():
        if most is not None and value > most:
            yield f"{what} {value:,}, at most {most:,} on the chip"
    stride = int(max(node.stride))
    if target.strides is not None and stride not in target.strides:
        yield f"stride {stride}, and the chip has {target.strides}"
    if target.weight_bits is not None and not is_constant and scales_of(node.weight, target.weight_bits) is None:
        yield f"weights are no integers of {target.weight_bits} bits with a scale for each channel"


def _is_constant(graph: nir.NIRGraph, name: str) -> bool:
    """Whether a convolution reads what is the same for all images, and is a bias of what reads it."""
    sources: list[Any] = [graph.nodes[source] for source, receiver in graph.edges if receiver == name]
    return all(type(source).__name__ == "Conv2d" and not source.weight.any() for source in sources)


def _weights(node: Any) -> int:
    return int((node.weight != 0).sum()) if type(node).__name__ == "Conv2d" else 0


def _fires(node: Any) -> bool:
    return type(node).__name__ in ("IF", "LIF")
