"""Spiking transformers of the zoo in NIR."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from ...spiking import (
    SPEDS,
    ConvBN,
    MembraneShortcut,
    QKChannelAttention,
    QKTokenAttention,
    SEWShortcut,
    SpikeDrivenSelfAttention,
    SpikingMLP,
    SpikingPatchSplitting,
    SpikingProjection,
)
from ...spiking.branches import SpikingAttention
from ...spiking.patches import DeformedShortcut
from ...zoo.network import SpikingTransformer, Stage
from .attention import masked_by_channel, masked_by_head, sum_of_head, sum_of_tokens
from .neurons import both, fires, memoryless
from .nodes import Array, Builder, Current, Signal, as_current, convolved, numbers, pointwise, refused, ungrouped

SAYABLE = (
    "models that pool no currents and multiply no integers can: QKFormer of one stage with attention ('qk-token',) or "
    "('qk-channel',) and stem 'cifar', or SpikeDrivenTransformer whose pools end in 0"
)


def zoo_logits(build: Builder, network: SpikingTransformer) -> Current:
    """The currents of the head, ``[classes, 1, 1]``.

    Raises:
        ExportError: NIR cannot say a module, which the message names.
    """
    x: Signal | Current = build.image
    for index, stage in enumerate(network.stages):
        assert isinstance(stage, Stage)
        name = f"stages.{index}"
        x = stage_of(build, f"{name}.embed", stage.embed, build.realise(f"{name}.image", x))
        for number, block in enumerate(stage.blocks):
            x = stage_of(build, f"{name}.blocks.{number}", block, x)
    tokens = build.realise("tokens", x)
    pooled = build.summed("pooled", tokens)
    mean: Signal | Current = pooled._replace(scale=pooled.scale / float(np.prod(tokens.shape[1:])))
    if not isinstance(network.head_neuron, nn.Identity):
        mean = fires(build, "head_neuron", network.head_neuron, mean)
    if isinstance(network.head, nn.Linear):
        return convolved(build.realise("mean", mean), pointwise(numbers(network.head.weight)), numbers(network.head.bias))
    return as_current(mean)


def stage_of(build: Builder, name: str, module: nn.Module, x: Signal | Current) -> Signal | Current:
    """What a module of the zoo's vocabulary makes of a map.

    Raises:
        ExportError: NIR cannot say it.
    """
    if isinstance(module, nn.Sequential):
        for child, part in module.named_children():
            x = stage_of(build, f"{name}.{child}", part, x)
        return x
    if isinstance(module, SEWShortcut):
        spikes = build.realise(f"{name}.stream", x)
        branch = stage_of(build, f"{name}.branch", module.branch, spikes)
        return _joined(spikes, fires(build, f"{name}.neuron", module.neuron, branch))
    if isinstance(module, MembraneShortcut):
        stream = build.realise(f"{name}.stream", x)
        branch = stage_of(build, f"{name}.branch", module.branch, fires(build, f"{name}.neuron", module.neuron, stream))
        return build.realise(f"{name}.add", as_current(stream).plus(branch))
    return _part(build, name, module, build.realise(f"{name}.input", x))


def _part(build: Builder, name: str, module: nn.Module, x: Signal) -> Signal | Current:
    if isinstance(module, ConvBN):
        return convolution(module, x)
    if isinstance(module, SpikingProjection):
        return projection(build, name, module, x)
    if isinstance(module, SpikingMLP):
        hidden = projection(build, f"{name}.expand", module.expand, x)
        return convolution(module.reduce, hidden)
    if isinstance(module, SpikingAttention):
        return _attention(build, name, module, x)
    if isinstance(module, SpikingPatchSplitting):
        return stage_of(build, f"{name}.position", module.position, stage_of(build, f"{name}.layers", module.layers, x))
    if isinstance(module, SPEDS):
        return stage_of(build, f"{name}.body", module.body, stage_of(build, f"{name}.stem", module.stem, x))
    if isinstance(module, DeformedShortcut):
        main = build.realise(f"{name}.main", stage_of(build, f"{name}.main", module.main, x))
        return _joined(main, projection(build, f"{name}.shortcut", module.shortcut, x))
    if isinstance(module, nn.MaxPool2d):
        raise refused(name, module, "a maximum of currents is no sum", SAYABLE)
    raise refused(name, module, "it multiplies or mixes signals in a way that is no mask of spikes", SAYABLE)


def convolution(module: ConvBN, x: Signal) -> Current:
    """BN(W x), with the normalisation folded into weight and bias."""
    conv, bn = module.conv, module.bn
    gain, offset = _normalised(bn)
    bias = numbers(conv.bias) if conv.bias is not None else np.zeros(conv.out_channels)
    weight = ungrouped(numbers(conv.weight), conv.groups) * gain[:, None, None, None]
    pad = conv.kernel_size[0] // 2
    return convolved(x, weight, bias * gain + offset, conv.stride[0], (pad, pad))


def projection(build: Builder, name: str, module: SpikingProjection, x: Signal) -> Signal:
    """N(BN(W x)), and the pooling of its spikes, which is an OR.

    Raises:
        ExportError: it pools currents, or NIR cannot say its neuron.
    """
    if module.pool == "before":
        raise refused(f"{name}.max_pool", module.max_pool, "a maximum of currents is no sum", SAYABLE)
    spikes = fires(build, f"{name}.neuron", module.neuron, convolution(module.project, x))
    if module.pool == "none":
        return spikes
    pool: Any = module.max_pool
    kernel = np.tile(np.eye(spikes.shape[0])[:, :, None, None], (1, 1, pool.kernel_size, pool.kernel_size))
    near = convolved(spikes, kernel, stride=pool.stride, padding=(pool.padding, pool.padding))
    return memoryless(build, f"{name}.max_pool", build.realise(f"{name}.near", near), 0.5)


def _attention(build: Builder, name: str, module: SpikingAttention, x: Signal) -> Current:
    masks = QKTokenAttention, QKChannelAttention, SpikeDrivenSelfAttention
    if not isinstance(module, masks) or not isinstance(module.interaction, nn.Identity):
        raise refused(name, module, "it multiplies spikes in a way that is no mask", SAYABLE)
    query, key = (projection(build, f"{name}.{child}", getattr(module, child), x) for child in ("query", "key"))
    if isinstance(module, SpikeDrivenSelfAttention):
        if not isinstance(module.erode, nn.Identity) or module.value is None:
            raise refused(name, module, "its maxima over channels and tokens are no maxima over positions", SAYABLE)
        value = projection(build, f"{name}.value", module.value, x)
        met = both(build, f"{name}.met", as_current(key), value)
        sums, passed = sum_of_tokens(build, name, [met]), query
    elif isinstance(module, QKChannelAttention):
        sums, passed = sum_of_tokens(build, name, [query]), key
    else:
        bits = fires(build, f"{name}.neuron", module.neuron, sum_of_head(query, module.num_heads))
        return convolution(module.out, masked_by_head(build, name, [bits], [key])[0])
    bits = fires(build, f"{name}.neuron", module.neuron, sums)
    return convolution(module.out, masked_by_channel(build, name, bits, [passed])[0])


def _joined(x: Signal, added: Signal) -> Signal:
    """The sum of spikes, which are integers."""
    assert x.scale == added.scale == 1.0
    return x._replace(sources=x.sources + added.sources)


def _normalised(bn: nn.BatchNorm2d) -> tuple[Array, Array]:
    mean, variance, weight, bias = (_known(x) for x in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    gain = weight / np.sqrt(variance + bn.eps)
    return gain, bias - mean * gain


def _known(x: Tensor | None) -> Array:
    assert x is not None
    return numbers(x)
