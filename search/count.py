"""What an architecture costs, in closed form: no model is made, so that thousands can be compared in a second.

Everything is for one image. Tests hold parameters, multiply-accumulates and neurons to those that are counted in the models
themselves (`vit2snn.zoo.statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from ..measure import FLOAT32, EnergyModel
from ..spiking import BlockSize, Counts
from ..spiking.branches import find
from ..spiking.branches.count import convolution, neurons, together
from ..zoo.frames import FRAMES
from ..zoo.qkformer import STEMS
from .space import Architecture, Space, Task

FIRING_RATE = 0.2
"""Spikes of a neuron in a timestep that energies are estimated with, where weights that would tell the rate do not exist."""


@dataclass(frozen=True)
class Figures:
    """What architectures are compared by, for one image.

    Attributes:
        score: AutoST's: billions of multiply-accumulates in all timesteps, products in the order (q kᵀ) v. More is better.
        parameters: learned numbers.
        macs: multiply-accumulates in all timesteps, as computed.
        energy: an estimate in joules: see `estimated_energy`.
        latency: measured seconds of one image; None where no constraint asks for it.
    """

    score: float
    parameters: int
    macs: int
    energy: float
    latency: float | None = None


def figures(architecture: Architecture, space: Space, task: Task, rate: float = FIRING_RATE) -> Figures:
    """Of an architecture of a space, for images of a task.

    AutoST's score, in the second version of the paper (arXiv 2307.00293), is the number of operations alone: it needs neither
    weights nor data.
    """
    counted, first = count(architecture, space, task)
    steps = architecture.timesteps
    return Figures(
        score=steps * (counted.layer_macs + counted.written_macs) / 1e9,
        parameters=counted.parameters + (counted.leaks if space.neuron == "plif" else 0),
        macs=steps * (counted.layer_macs + counted.product_macs),
        energy=estimated_energy(counted, first, steps, rate),
    )


def estimated_energy(counts: Counts, first: int, timesteps: int, rate: float, model: EnergyModel = FLOAT32) -> float:
    """In joules, by the convention of the papers: T · (E_MAC · FL₁ + E_AC · rate · FL), one rate for all neurons.

    Args:
        counts: of the network.
        first: FL₁, multiply-accumulates of the layer that sees the image.
        timesteps: T.
        rate: spikes of a neuron in a timestep.
        model: energies of operations.
    """
    driven = counts.layer_macs + counts.product_macs - first
    return timesteps * (model.mac * first + model.ac * rate * driven) * 1e-12


def count(architecture: Architecture, space: Space, task: Task) -> tuple[Counts, int]:
    """The whole network, for one timestep, and the multiply-accumulates of the layer that sees the image."""
    frame, stages = FRAMES[space.frame], len(architecture.depths)
    dims = [architecture.dim // 2**later for later in reversed(range(stages))]
    size, parts, blocks = task.size, [], _blocks(architecture)
    for index, (dim, depth) in enumerate(zip(dims, architecture.depths, strict=True)):
        channels = dims[index - 1] if index else task.in_chans
        embedded, size = _embedding(space.frame, frame.stems[task.stem], index, channels, dim, size)
        parts += [embedded, *(_block(*next(blocks), dim, size) for _ in range(depth))]
    head = Counts(parameters=(dims[-1] + 1) * task.num_classes, layer_macs=dims[-1] * task.num_classes)
    neuron = neurons(dims[-1]) if frame.head_neuron else Counts()
    return together([*parts, head, neuron]), _first(space.frame, frame.stems[task.stem], task, dims[0])


def _blocks(architecture: Architecture) -> Iterator[tuple[str, int, float]]:
    return iter(zip(architecture.attention, architecture.num_heads, architecture.mlp_ratios, strict=True))


def _block(kind: str, heads: int, ratio: float, dim: int, size: int) -> Counts:
    """Attention and perceptron, and the neuron of each one's shortcut."""
    block, after = BlockSize(dim, heads, int(dim * ratio), (size, size)), neurons(dim * size**2)
    return together([_branch(find("attention", kind).count, block), _branch(find("mlp", "spiking").count, block), after, after])


@lru_cache(maxsize=4096)
def _branch(count: Callable[[BlockSize], Counts], block: BlockSize) -> Counts:
    return count(block)


@lru_cache(maxsize=512)
def _embedding(frame: str, stem: str, stage: int, inputs: int, dim: int, size: int) -> tuple[Counts, int]:
    """The patch embedding of a stage, and the size of its maps."""
    return _speds(stem, stage, inputs, dim, size) if FRAMES[frame].hierarchical else _splitting(frame, stem, inputs, dim, size)


def _splitting(frame: str, pools: str, inputs: int, dim: int, size: int) -> tuple[Counts, int]:
    """`vit2snn.spiking.SpikingPatchSplitting`: neurons before the pooling."""
    parts, widths = [], [inputs, dim // 8, dim // 4, dim // 2, dim]
    for i, pooled in enumerate(pools):
        parts.append(convolution(widths[i], widths[i + 1], size**2, kernel=3))
        if i < 3 or frame not in ("sdt", "autost"):
            parts.append(neurons(widths[i + 1] * size**2))
        size = size // 2 if pooled == "1" else size
    parts.append(convolution(dim, dim, size**2, kernel=3))
    if frame in ("spikformer", "sdt"):
        parts.append(neurons(dim * size**2))
    return together(parts), size


def _speds(stem: str, stage: int, inputs: int, dim: int, size: int) -> tuple[Counts, int]:
    """`vit2snn.spiking.SPEDS`: neurons after the pooling, and a shortcut with a stride."""
    form = STEMS[stem]
    widths = [inputs, *(dim // part for part in form.parts)] if stage == 0 else [inputs, dim, dim]
    pools, before = (form.pools, form.before) if stage == 0 else (form.later, 0)
    parts = []
    for i, pooled in enumerate(pools):
        parts.append(convolution(widths[i], widths[i + 1], size**2, kernel=3))
        size = size // 2 if pooled == "1" else size
        parts.append(neurons(widths[i + 1] * size**2))
    parts += [convolution(widths[before], dim, size**2), neurons(dim * size**2)]
    return together(parts), size


def _first(frame: str, stem: str, task: Task, dim: int) -> int:
    """Multiply-accumulates of the layer that sees the image."""
    part = STEMS[stem].parts[0] if FRAMES[frame].hierarchical else 8
    return task.in_chans * (dim // part) * 9 * task.size**2
