"""Modules that need no operation of their own in a spiking network: they are absorbed by a neighbour.

A batch normalisation right behind a layer goes into the layer's weights. A ReLU right in front of a neuron whose spikes are
unsigned, and which starts from 0, is what that neuron does anyway (Cao et al., IJCV 2015: a rate-coded neuron is a ReLU).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import timm.layers as tl
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..spiking import CodedNeuron, SpikingConv2d, SpikingLinear
from ..tracing import Operation
from .recipe import Recipe

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, tl.BatchNormAct2d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, tl.Conv2dSame)


def absorbed(model: nn.Module, operations: Sequence[Operation], recipe: Recipe) -> dict[str, str]:
    """The modules of ``model`` that go into a neighbouring layer, by name, and that layer.

    For a normalisation it is the layer before, for a ReLU the layer behind, whose neuron absorbs it.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    rectifying = recipe.coded.rectifies
    found: dict[str, str] = {}
    repeated = {operation.module for operation in operations if operation.use}
    for operation in operations:
        module, before = modules[operation.module], modules.get(operation.behind)
        if isinstance(module, NORMS) and type(module) in NORMS and type(before) in LAYERS and module.running_mean is not None:
            found[operation.module] = operation.behind
        elif rectifying and type(before) is nn.ReLU and type(module) in (nn.Linear, nn.Conv2d):
            found[operation.behind] = operation.module
    kept = {name for pair in found.items() for name in pair if recipe.ignores(name)} | repeated
    return {name: layer for name, layer in found.items() if not kept & {name, layer}}


@torch.no_grad()
def absorb_norms(network: nn.Module, pairs: dict[str, str]) -> None:
    """Put normalisations into the weights before them, in place; ``pairs`` are those of `absorbed`."""
    for name, layer_name in pairs.items():
        norm, layer = network.get_submodule(name), network.get_submodule(layer_name)
        if not isinstance(norm, NORMS):
            continue
        assert isinstance(layer, LAYERS) and norm.running_mean is not None and norm.running_var is not None
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
        rest = OrderedDict(norm.named_children())  # an activation function, in timm's normalisations that have one
        network.set_submodule(name, nn.Sequential(rest) if rest else nn.Identity())


def absorb_functions(network: nn.Module, pairs: dict[str, str]) -> None:
    """Let neurons rectify what they see in place of the ReLUs in front of them, in place."""
    for name, layer_name in pairs.items():
        layer = network.get_submodule(layer_name)
        if isinstance(network.get_submodule(name), nn.ReLU) and isinstance(layer, (SpikingLinear, SpikingConv2d)):
            assert isinstance(layer.neuron, CodedNeuron)
            layer.neuron.rectified = True
            network.set_submodule(name, nn.Identity())
