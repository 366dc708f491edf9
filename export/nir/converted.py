"""Converted networks in NIR: timm's Vision Transformer whose branches are substitutes with membrane neurons.

Tokens are a list of maps: those before the patches (class, registers), ``[C, 1, 1]`` each, and the patches ``[C, H, W]`` last.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from timm.layers import LayerScale, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ...spiking.substitutes import (
    ExpertMlp,
    QKChannelGate,
    QKTokenGate,
    SpikeDrivenGate,
    StaticNorm,
    SubstituteAttention,
    SubstituteMlp,
    ValueConvolution,
)
from ...spiking.substitutes.gates import Gate, QKGate
from .attention import masked_by_channel, masked_by_head, named, sum_of_head, sum_of_tokens
from .neurons import RECIPE, both, fires
from .nodes import Builder, Current, Signal, as_current, convolved, numbers, pointwise, refused, ungrouped

Maps = Sequence[Signal]


def converted_logits(build: Builder, network: VisionTransformer) -> Current:
    """The currents of the head, ``[classes, 1, 1]``.

    Raises:
        ExportError: NIR cannot say a module, which the message names.
    """
    _check(network)
    maps = _embedded(build, network)
    for index, block in enumerate(network.blocks):
        maps = _block(build, f"blocks.{index}", block, maps)
    read = _read(build, network, maps)
    if isinstance(network.head, nn.Identity):
        return read
    # A head without a neuron is the last map of currents, which is all that a readout wants.
    given = read if hasattr(network.head, "neuron") else build.realise("features", read)
    return _driven(build, "head", network.head, [given])[0]


def _check(network: VisionTransformer) -> None:
    """Refuse what surrounds the blocks, where it is more than a sum."""
    if type(network.patch_embed) is not PatchEmbed:
        raise refused("patch_embed", network.patch_embed, "it is no convolution of the image", "convert a model without it")
    for name in ("patch_embed.norm", "norm_pre", "fc_norm"):
        module = network.get_submodule(name)
        if not isinstance(module, nn.Identity):
            raise refused(name, module, "it divides by a size that depends on the image", RECIPE)
    if network.global_pool not in ("token", "avg") or network.pool_include_prefix or network.attn_pool is not None:
        raise refused(
            "attn_pool", network.attn_pool, f"tokens are pooled by {network.global_pool!r}", "structure.readout 'mean'"
        )
    if network.pos_embed is None:
        raise refused(
            "pos_embed", None, "positions are no sum on the tokens", "convert a model with an absolute position embedding"
        )


def _embedded(build: Builder, network: VisionTransformer) -> list[Signal]:
    """Patches and the tokens before them, with their positions: constants are those of an input that is always 1."""
    conv: Any = network.patch_embed.proj
    if type(conv) is not nn.Conv2d:
        raise refused("patch_embed.proj", conv, "its neurons send graded spikes of the image", RECIPE)
    weight, bias = numbers(conv.weight), np.zeros(conv.out_channels) if conv.bias is None else numbers(conv.bias)
    patches = convolved(build.image, weight, bias, conv.stride[0])
    one = build.realise("one", convolved(build.image, np.zeros((1, *build.image.shape)), np.ones(1)))
    before = [numbers(token)[0] for token in (network.cls_token, network.reg_token) if token is not None]
    positions = numbers(network.pos_embed)[0]
    tokens = np.concatenate(before) if before else np.zeros((0, len(weight)))
    if not network.no_embed_class:
        tokens, positions = tokens + positions[: len(tokens)], positions[len(tokens) :]
    height, width = patches.shape[1:]
    grid = positions.T.reshape(-1, 1, height, width)[:, :, ::-1, ::-1]  # a convolution of one pixel writes its kernel turned
    whole = patches.plus(convolved(one, grid, padding=(height - 1, width - 1)))
    maps = [convolved(one, pointwise(token[:, None])) for token in tokens]
    return [build.realise(named("patch_embed", i, len(maps) + 1), x) for i, x in enumerate([*maps, whole])]


def _block(build: Builder, name: str, block: nn.Module, maps: Maps) -> list[Signal]:
    if type(block) is not Block:
        raise refused(name, block, "it is no block of normed attention and perceptron", RECIPE)
    part: Any
    for norm, branch, scale, says in (("norm1", "attn", "ls1", _attention), ("norm2", "mlp", "ls2", _perceptron)):
        part = getattr(block, branch)
        normed = _normed(f"{name}.{norm}", getattr(block, norm), maps)
        added = [_scaled(x, getattr(block, scale)) for x in says(build, f"{name}.{branch}", part, normed)]
        whole = [as_current(x).plus(y) for x, y in zip(maps, added, strict=True)]
        maps = [build.realise(named(f"{name}.{branch}.add", i, len(maps)), x) for i, x in enumerate(whole)]
    return list(maps)


def _normed(name: str, norm: nn.Module, maps: Maps) -> list[Current]:
    if type(norm) is not StaticNorm:
        raise refused(name, norm, "it multiplies tokens by what depends on the image", RECIPE)
    rows = zip(numbers(norm.weight), numbers(norm.bias), strict=True)
    return [as_current(x).scaled(gain, offset) for x, (gain, offset) in zip(maps, rows, strict=True)]


def _scaled(x: Current, scale: nn.Module) -> Current:
    return x.scaled(numbers(scale.gamma)) if isinstance(scale, LayerScale) else x


def _perceptron(build: Builder, name: str, mlp: nn.Module, maps: Sequence[Current]) -> list[Current]:
    if not isinstance(mlp, SubstituteMlp) or isinstance(mlp, ExpertMlp):
        raise refused(name, mlp, "its activations are no binary spikes, or it multiplies them", RECIPE)
    hidden = _driven(build, f"{name}.fc1", mlp.fc1, maps)
    spikes = _fire(build, f"{name}.act", mlp.act, hidden, (1, mlp.fc1.out_features))
    return [_linear(f"{name}.fc2", mlp.fc2, x) for x in spikes]


def _attention(build: Builder, name: str, attention: nn.Module, maps: Sequence[Current]) -> list[Current]:
    if not isinstance(attention, SubstituteAttention):
        raise refused(name, attention, "a softmax divides, and products of its weights and values are no masks", RECIPE)
    whole = _driven(build, f"{name}.qkv", attention.qkv, maps)
    ends = np.cumsum([0, *attention.widths.values()]).tolist()
    read = {
        part: [x.part(start, stop) for x in whole] for part, (start, stop) in zip(attention.widths, pairwise(ends), strict=True)
    }
    total: list[Signal | Current] = []
    for kind, found in attention.terms.items():
        given = _term(build, f"{name}.terms.{kind}", found, read, attention.heads)
        total = [as_current(x).plus(y) for x, y in zip(total, given, strict=True)] if total else given
    return _driven(build, f"{name}.proj", attention.proj, total)


def _term(build: Builder, name: str, term: nn.Module, read: dict[str, list[Current]], heads: int) -> list[Signal | Current]:
    if isinstance(term, ValueConvolution):
        return _convolved_value(build, name, term, read["value"])
    by_head = heads, 1, read["value"][0].shape[0] // heads
    operands = [child for child, _ in term.named_children() if child.startswith("spiking_operand")]
    if not isinstance(term, (QKTokenGate, QKChannelGate, SpikeDrivenGate)) or len(operands) != 1:
        raise refused(name, term, "it multiplies signals, and none of them is a mask of spikes", RECIPE)
    (child,) = operands
    spikes = _fire(build, f"{name}.{child}", term.get_submodule(child), read["value"], by_head)
    if isinstance(term, SpikeDrivenGate):
        bits = _met_bits(build, name, term, read, by_head)
    elif isinstance(term, QKChannelGate):
        query = _fire(build, f"{name}.gate.rectify", term.gate.rectify, read["query"], by_head)
        bits = _channel_bits(build, f"{name}.gate", term.gate, query, by_head)
    else:
        return [*_masked_by_token(build, name, term, read["query"], spikes, by_head)]
    return [x._replace(scale=x.scale * bits.scale) for x in masked_by_channel(build, name, bits, spikes)]


def _masked_by_token(
    build: Builder, name: str, term: QKGate, query: Sequence[Current], spikes: Maps, by_head: tuple[int, int, int]
) -> list[Signal]:
    heads, _, width = by_head
    gate = term.gate
    gain, offset = numbers(gate.gain).reshape(-1) / width, numbers(gate.offset).reshape(-1)
    sums = [
        sum_of_head(x, heads).scaled(gain, offset) for x in _fire(build, f"{name}.gate.rectify", gate.rectify, query, by_head)
    ]
    bits = _fire(build, f"{name}.gate.clip", gate.clip, sums, (heads, 1, 1))
    masked = masked_by_head(build, name, [x._replace(scale=1.0) for x in bits], spikes)
    return [x._replace(scale=x.scale * bits[0].scale) for x in masked]


def _channel_bits(
    build: Builder, name: str, gate: Gate | SpikeDrivenGate, spikes: Maps, by_head: tuple[int, int, int]
) -> Signal:
    """A bit for each channel, from the mean over all tokens."""
    tokens = sum(x.shape[1] * x.shape[2] for x in spikes)
    gain, offset = numbers(gate.gain).reshape(-1) / tokens, numbers(gate.offset).reshape(-1)
    mean = sum_of_tokens(build, name, spikes).scaled(gain, offset)
    return fires(build, f"{name}.clip", gate.clip, mean, by_head)


def _met_bits(
    build: Builder, name: str, term: SpikeDrivenGate, read: dict[str, list[Current]], by_head: tuple[int, int, int]
) -> Signal:
    query = _fire(build, f"{name}.rectify_query", term.rectify_query, read["query"], by_head)
    key = _fire(build, f"{name}.rectify_key", term.rectify_key, read["key"], by_head)
    met = [
        both(build, named(f"{name}.met", i, len(query)), as_current(x._replace(scale=1.0)), y)._replace(scale=x.scale * y.scale)
        for i, (x, y) in enumerate(zip(query, key, strict=True))
    ]
    return _channel_bits(build, name, term, met, by_head)


def _convolved_value(build: Builder, name: str, term: ValueConvolution, value: Sequence[Current]) -> list[Signal | Current]:
    conv: Any = term.conv
    channels, last = conv.in_channels, len(value) - 1
    whole, bias = ungrouped(numbers(conv.weight), conv.groups), numbers(conv.bias)
    middle = conv.kernel_size[0] // 2
    convolutions: list[Signal | Current] = []
    for index, x in enumerate(value):
        child = "spiking_operand0" if index == last else "spiking_operand0_1"
        if child not in conv._modules:
            raise refused(f"{name}.conv", conv, "no spikes drive it", RECIPE)
        spikes = fires(build, named(f"{name}.conv.{child}", index, len(value)), getattr(conv, child), x, (channels, 1, 1))
        kernel = whole if index == last else whole[:, :, middle : middle + 1, middle : middle + 1]
        pad = middle if index == last else 0
        convolutions.append(convolved(spikes, kernel, bias, padding=(pad, pad)))
    return convolutions


def _driven(build: Builder, name: str, linear: nn.Module, maps: Sequence[Signal | Current]) -> list[Current]:
    """A linear map of tokens behind its neuron, or right behind spikes."""
    layer: Any = linear
    neuron = getattr(layer, "neuron", None)
    if neuron is not None:
        return [_linear(name, layer, x) for x in _fire(build, f"{name}.neuron", neuron, maps, (1, layer.in_features))]
    if not all(isinstance(x, Signal) for x in maps):
        raise refused(name, linear, "it is driven by no spikes", RECIPE)
    return [_linear(name, layer, x) for x in maps if isinstance(x, Signal)]


def _fire(
    build: Builder, name: str, neuron: nn.Module, maps: Sequence[Signal | Current], layout: tuple[int, ...]
) -> list[Signal]:
    return [fires(build, named(name, i, len(maps)), neuron, x, layout) for i, x in enumerate(maps)]


def _linear(name: str, linear: nn.Module, x: Signal) -> Current:
    if type(linear) is not nn.Linear and not hasattr(linear, "neuron"):
        raise refused(name, linear, "it is no linear layer", RECIPE)
    weight, bias = numbers(_parameter(linear.weight)), linear.bias
    return convolved(x, pointwise(weight), None if bias is None else numbers(_parameter(bias)))


def _parameter(x: Any) -> Tensor:
    assert isinstance(x, Tensor)
    return x


def _read(build: Builder, network: VisionTransformer, maps: Maps) -> Current:
    """What the head reads, ``[C, 1, 1]``: the class token, or the mean over the patches."""
    if network.global_pool == "token":
        return _normed("norm", network.norm, maps)[0]
    patches = maps[-1]
    pooled = build.summed("pooled", patches)._replace(scale=1 / float(np.prod(patches.shape[1:])))
    return _normed("norm", network.norm, [pooled] * len(maps))[-1]
