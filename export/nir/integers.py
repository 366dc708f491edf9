"""Weights of integers in NIR: what rows of weights are integers times a scale, and where the scale goes into thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .nodes import Array

if TYPE_CHECKING:
    import nir

CLOSE = 1e-3
"""How far a weight may be from an integer, in integers: single precision, in which scales were multiplied, is finer."""


def scales_of(weight: Array, bits: int) -> Array | None:
    """What makes rows of weights integers of so many bits: a scale for each, ``[out]``; None where some have none."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(rows).max(1)
    scales = np.where(largest > 0, 0.0, 1.0)
    for most in range(2 ** (bits - 1) - 1, 0, -1):  # the integer that the largest weight may be
        left = np.flatnonzero(scales == 0)
        if not len(left):
            break
        tried = largest[left] / most
        levels = rows[left] / tried[:, None]
        whole = (np.abs(levels - levels.round()) < CLOSE).all(1)
        scales[left[whole]] = tried[whole]
    return scales if scales.all() else None


def fold_scales(graph: nir.NIRGraph, bits: int) -> None:
    """Divide weights by their scale where a neuron sees nothing else, whose thresholds are divided too, in place.

    A neuron that leaks towards 0 and is reset to 0, as all of ours do, fires then as it did before. Weights that meet others in
    a sum, or that no neuron reads, stay integers times a scale.
    """
    for name, node in graph.nodes.items():
        receivers = [receiver for source, receiver in graph.edges if source == name]
        if type(node).__name__ != "Conv2d" or len(receivers) != 1:
            continue
        neuron: Any = graph.nodes[receivers[0]]
        alone = [receiver for _, receiver in graph.edges].count(receivers[0]) == 1
        scales = scales_of(node.weight, bits) if alone and type(neuron).__name__ in ("IF", "LIF") else None
        if scales is not None:
            node.weight = (node.weight / scales[:, None, None, None]).round().astype(np.float32)
            node.bias = (node.bias / scales).astype(np.float32)
            neuron.v_threshold = neuron.v_threshold / scales[:, None, None]
