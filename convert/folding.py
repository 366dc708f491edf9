"""Folding: batch normalisations disappear into weights, gains and offsets, and the network computes the same."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..spiking import Balanced, ConvBN, SpikingNorm
from .model import SpikingModel


def fold(snn: SpikingModel) -> SpikingModel:
    """A copy for inference without batch normalisation: for export, or for hardware that knows weights and neurons only.

    Behind a layer, the normalisation goes into its weights and bias; in front of a neuron, it is a gain and an offset of each
    channel, that is a threshold and a constant input.
    """
    folded = copy.deepcopy(snn).eval()
    fold_network(folded.network)
    folded.folded = True
    return folded


def fold_network(network: nn.Module) -> None:
    """Fold the normalisations of a network in evaluation mode, in place."""
    for module in network.modules():
        if isinstance(module, ConvBN) and isinstance(module.bn, nn.BatchNorm2d):
            # In double precision: an error of rounding in a current may cross a threshold.
            dtype = module.conv.weight.dtype
            module.conv = fuse_conv_bn_eval(module.conv.double(), module.bn.double()).to(dtype)
            module.set_submodule("bn", nn.Identity())
        elif isinstance(module, SpikingNorm) and isinstance(module.norm, nn.BatchNorm2d):
            bn = module.norm
            assert bn.running_mean is not None and bn.running_var is not None
            balanced = Balanced(module.neuron, (bn.num_features,))
            mean, variance, gain, offset = (t.double() for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
            with torch.no_grad():
                gain = gain / (variance + bn.eps).sqrt()
                balanced.gain.copy_(gain)
                balanced.offset.copy_(offset - gain * mean)
            module.set_submodule("norm", nn.Identity())
            module.set_submodule("neuron", balanced)
