"""The built-in conversion rules."""

from __future__ import annotations

import timm.layers as tl
from torch import nn

from ..spiking import ShiftGELU, ShiftLayerNorm, SpikingConv2d, SpikingLinear, driven
from .products import rewrite_products
from .registry import NeuronFactory, converts, keep_analog


@converts(nn.Linear)
def linear(module: nn.Linear, neuron: NeuronFactory) -> SpikingLinear:
    """Channels are the last axis."""
    return driven(SpikingLinear, module, neuron((-1,)))


@converts(nn.Conv2d)
def conv2d(module: nn.Conv2d, neuron: NeuronFactory) -> SpikingConv2d:
    """Channels are the first axis of an image."""
    return driven(SpikingConv2d, module, neuron((-3,)))


converts(tl.Attention, tl.AttentionPoolLatent, tl.AttentionPoolPrr, tl.GluMlp, tl.SwiGLU)(rewrite_products)

converts(
    nn.LayerNorm, tl.LayerNorm, tl.LayerNormFp32, tl.RmsNorm, nn.RMSNorm,
    nn.GELU, tl.GELU, tl.GELUTanh, tl.QuickGELU, nn.SiLU, nn.ReLU, nn.Sigmoid, nn.Tanh,
    nn.Softmax, tl.LayerScale, ShiftLayerNorm, ShiftGELU,
)(keep_analog)  # fmt: skip
