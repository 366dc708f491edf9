"""What an architecture costs, in closed form: no model is made, so that thousands can be compared in a second.

Everything is for one image. Tests hold parameters, multiply-accumulates and neurons to those that are counted in the models
themselves (`vit2snn.zoo.statistics`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import add
from typing import NamedTuple

from ..measure import FLOAT32, EnergyModel
from ..zoo.frames import FRAMES
from ..zoo.qkformer import STEMS
from .space import Architecture, Space, Task

FIRING_RATE = 0.2
"""Spikes of a neuron in a timestep that energies are estimated with, where weights that would tell the rate do not exist."""


class Counts(NamedTuple):
    """Of a part of a network, for one image and one timestep; parts add up.

    Attributes:
        parameters: learned numbers, leaks of neurons included.
        layer_macs: multiply-accumulates of convolutions and linear layers.
        product_macs: of products of spikes by spikes, in the cheaper of their orders, in which they are computed.
        written_macs: the same in the order in which papers write them, (q kᵀ) v.
        neurons: that may send a spike.
        leaks: neurons with a parameter of their own, were they PLIF: one for each layer of them.
    """

    parameters: int = 0
    layer_macs: int = 0
    product_macs: int = 0
    written_macs: int = 0
    neurons: int = 0
    leaks: int = 0

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        return Counts(*map(add, self, other))


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
        parts += [embedded, *(_block(*next(blocks), dim, size**2) for _ in range(depth))]
    head = Counts(parameters=(dims[-1] + 1) * task.num_classes, layer_macs=dims[-1] * task.num_classes)
    neuron = _neuron(dims[-1]) if frame.head_neuron else Counts()
    return sum([*parts, head, neuron], Counts()), _first(space.frame, frame.stems[task.stem], task, dims[0])


def _blocks(architecture: Architecture) -> Iterator[tuple[str, int, float]]:
    return iter(zip(architecture.attention, architecture.num_heads, architecture.mlp_ratios, strict=True))


def _neuron(signal: int) -> Counts:
    """A layer of neurons, one for each value of a signal."""
    return Counts(neurons=signal, leaks=1)


def _conv(inputs: int, outputs: int, positions: int, kernel: int = 1, bias: bool = False) -> Counts:
    """A convolution and its batch normalisation."""
    weights = inputs * outputs * kernel**2
    return Counts(parameters=weights + (3 if bias else 2) * outputs, layer_macs=weights * positions)


@lru_cache(maxsize=4096)
def _block(kind: str, heads: int, ratio: float, dim: int, tokens: int) -> Counts:
    """Attention and perceptron, and the neuron of each one's shortcut."""
    hidden = int(dim * ratio)
    mlp = _conv(dim, hidden, tokens, bias=True) + _neuron(hidden * tokens) + _conv(hidden, dim, tokens, bias=True)
    return _attention(kind, heads, dim, tokens) + mlp + _neuron(dim * tokens) + _neuron(dim * tokens)


def _attention(kind: str, heads: int, dim: int, tokens: int) -> Counts:
    projection = _conv(dim, dim, tokens, bias=True) + _neuron(dim * tokens)
    width = dim // heads
    if kind == "emsa":
        key = _conv(dim, width, tokens, bias=True) + _neuron(width * tokens)
        router = _conv(dim, heads, tokens, bias=True) + _neuron(heads * tokens)
        written = heads * (width + dim) * tokens**2
        linear = (1 + heads) * dim * width * tokens
        query = _conv(dim, heads * width, tokens, bias=True) + _neuron(heads * width * tokens)
        parts = [query, key, projection, router, _products(written, linear, tokens > width), _neuron(heads * dim * tokens)]
    else:
        masks = {"ssa": dim * tokens, "qk-token": heads * tokens, "qk-channel": dim, "sdsa": dim}
        written = 2 * dim * tokens**2 if kind == "ssa" else 0
        linear = 2 * dim * width * tokens if kind == "ssa" else 0
        inputs = [projection] * (3 if kind in ("ssa", "sdsa") else 2)
        parts = [*inputs, _products(written, linear, tokens > width), _neuron(masks[kind])]
    return sum([*parts, _conv(dim, dim, tokens, bias=True)], Counts())


def _products(written: int, linear: int, many: bool) -> Counts:
    """In the order (q kᵀ) v, and as `vit2snn.spiking.attention.attend` computes them: q (kᵀ v) where there are many tokens."""
    return Counts(product_macs=linear if many else written, written_macs=written)


@lru_cache(maxsize=512)
def _embedding(frame: str, stem: str, stage: int, inputs: int, dim: int, size: int) -> tuple[Counts, int]:
    """The patch embedding of a stage, and the size of its maps."""
    return _speds(stem, stage, inputs, dim, size) if FRAMES[frame].hierarchical else _splitting(frame, stem, inputs, dim, size)


def _splitting(frame: str, pools: str, inputs: int, dim: int, size: int) -> tuple[Counts, int]:
    """`vit2snn.spiking.SpikingPatchSplitting`: neurons before the pooling."""
    parts, widths = [], [inputs, dim // 8, dim // 4, dim // 2, dim]
    for i, pooled in enumerate(pools):
        parts.append(_conv(widths[i], widths[i + 1], size**2, kernel=3))
        if i < 3 or frame not in ("sdt", "autost"):
            parts.append(_neuron(widths[i + 1] * size**2))
        size = size // 2 if pooled == "1" else size
    parts.append(_conv(dim, dim, size**2, kernel=3))
    if frame in ("spikformer", "sdt"):
        parts.append(_neuron(dim * size**2))
    return sum(parts, Counts()), size


def _speds(stem: str, stage: int, inputs: int, dim: int, size: int) -> tuple[Counts, int]:
    """`vit2snn.spiking.SPEDS`: neurons after the pooling, and a shortcut with a stride."""
    form = STEMS[stem]
    widths = [inputs, *(dim // part for part in form.parts)] if stage == 0 else [inputs, dim, dim]
    pools, before = (form.pools, form.before) if stage == 0 else (form.later, 0)
    parts = []
    for i, pooled in enumerate(pools):
        parts.append(_conv(widths[i], widths[i + 1], size**2, kernel=3))
        size = size // 2 if pooled == "1" else size
        parts.append(_neuron(widths[i + 1] * size**2))
    parts += [_conv(widths[before], dim, size**2), _neuron(dim * size**2)]
    return sum(parts, Counts()), size


def _first(frame: str, stem: str, task: Task, dim: int) -> int:
    """Multiply-accumulates of the layer that sees the image."""
    part = STEMS[stem].parts[0] if FRAMES[frame].hierarchical else 8
    return task.in_chans * (dim // part) * 9 * task.size**2
