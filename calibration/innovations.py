"""What a neuron has to send while it is calibrated: the magnitudes of its innovations, as observers want them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spiking import CodedNeuron, gpu
from ..spiking.coding import Constants
from ..spiking.native import address, kernels
from .activity import Activity
from .histogram import BINS, FIRST
from .observers import HistogramObserver, Observer
from .rule import threshold_axes


def show(observer: Observer, neuron: CodedNeuron, seen: Activity, t: int, x: Tensor, before: Tensor | None = None) -> None:
    """Show an observer the part of a neuron's innovations at timestep ``t`` that its alphabet can express.

    Args:
        observer: of the neuron.
        neuron: calibrated as far as its prior.
        seen: the neuron's activity.
        t: the timestep.
        x: its target x[t], ``[B, ...]``.
        before: m[t-1], the same shape; None for the prior.
    """
    axes, prior = threshold_axes(neuron, seen), neuron.prior.expand(x.shape[1:])
    if isinstance(observer, HistogramObserver) and not axes and not seen.scattered:
        part = None if before is None else seen.part(before)
        counts = _counted(neuron, t, seen.part(x), part, seen.part(prior))
        if counts is not None:
            observer.histogram.add(counts)
            return
    assert neuron.alphabet is not None
    held = neuron.coding.held(t, prior.expand(x.shape) if before is None else before, prior)
    observer.update(seen.columns(neuron.alphabet.magnitudes(neuron.coding.innovation(t, x, held)), axes))


def _counted(neuron: CodedNeuron, t: int, x: Tensor, before: Tensor | None, prior: Tensor) -> Tensor | None:
    """Their histogram ``[1, BINS]``, in one pass over memory; None if no kernel can do it."""
    library, on_gpu = kernels(x), gpu.can_compute(x)
    if (library is None and not on_gpu) or prior.dtype != torch.float32 or x.ndim < 2 or not x.numel():
        return None
    assert neuron.alphabet is not None
    coefficients, is_signed = neuron.coding.coefficients(t), neuron.alphabet.signed
    if on_gpu:
        return gpu.innovations(x, before, prior, coefficients, is_signed, FIRST, BINS).unsqueeze(0)
    x = x if x.stride(-1) == 1 else x.contiguous()
    before = before if before is None else before.contiguous()
    counts = torch.zeros(1, BINS, dtype=torch.int64)
    constants = Constants(x.shape[1:], x.stride()[1:], coefficients, is_signed, [prior])
    assert library is not None
    library.innovations(constants.kernel, address(x), x.stride(0), address(before), len(x), FIRST, BINS, address(counts))
    return counts
