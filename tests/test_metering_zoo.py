"""The meter on whole models of the zoo, beside a count of what their parts were heard to send."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from bruteforce import Counts, by_linear, check, counted, flat, spikes, whole
from conftest import enliven
from torch import Tensor, nn

from vit2snn.measure import Meter
from vit2snn.spiking import ExpertMixtureAttention, SpikingSelfAttention

T, B = 3, 2
ZOO: dict[str, dict[str, Any]] = {
    "qkformer_10_384": {"dims": (8, 16, 32), "depths": (1, 1, 1), "num_heads": 4, "mlp_ratio": 2},
    "qkformer_4_384_cifar10": {"dims": (8, 16), "depths": (1, 1), "attention": ("qk-mixed", "qk-channel"), "num_heads": 4},
    "qkformer_2_256_dvs128": {"dims": (8, 16), "num_heads": 4},
    "spikformer_8_384": {"dim": 16, "depth": 2, "num_heads": 4},
    "spikformer_4_384_cifar10": {"dim": 16, "depth": 1, "num_heads": 4},
    "sdt_8_384": {"dim": 16, "depth": 1},
    "sdt_2_256_dvs128": {"dim": 16, "depth": 1},
    "spikingformer_8_384": {"dim": 16, "depth": 1, "num_heads": 4},
    "semm_spikformer_4_384_cifar10": {"dim": 16, "depth": 1, "expert_dim": 8},
    "semm_sdt_8_512": {"dim": 16, "depth": 1, "expert_dim": 8},
    "semm_spikingformer_4_384_cifar10": {"dim": 16, "depth": 1, "expert_dim": 8},
    "tim_2_256_cifar10dvs": {"dim": 16, "depth": 1, "num_heads": 4, "img_size": 32},
    "autost_4_384_cifar100": {"dim": 16, "num_heads": (4,), "mlp_ratios": (2,)},
}


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_every_operation_of_a_model_of_the_zoo(name: str) -> None:
    model: Any = timm.create_model(name, **ZOO[name], num_classes=5, timesteps=T)
    for module in model.modules():
        if isinstance(module, (SpikingSelfAttention, ExpertMixtureAttention)):
            module.scale = 1.0  # so few channels of a head would not make the neuron behind it fire
    size = max(16, model.stride)
    x = torch.rand(B, model.in_chans, size, size)
    if "dvs" in name:
        x = torch.randint(0, 3, (T, B, model.in_chans, max(32, size), max(32, size))).float()
    enliven(model, x)
    counts = counted(model, B, lambda: model.readout(x, chunk=1))
    add_readout(model, x, counts)
    for chunk in (None, 1):
        logits = model.readout(x, chunk=chunk)
        with Meter(model) as meter:
            assert torch.equal(model.readout(meter.show(x), chunk=chunk), logits)
        check(meter, counts)
    silent = [name for name, stream in meter.streams.items() if not stream.spikes.any()]
    assert not silent


@torch.no_grad()
def add_readout(model: Any, x: Tensor, counts: Counts) -> None:
    """The mean over tokens: of spikes, it is a sum, and the head reads it as so many of them."""
    maps = model.forward_features(x).tolist()
    if whole(maps):
        counts[""] = [[[(spikes(tokens), 0) for tokens in images] for images in maps]]
        if isinstance(model.head_neuron, nn.Identity):
            sums = [[[sum(flat(channel)) for channel in tokens] for tokens in images] for images in maps]
            counts["head"] = [[[(by_linear(model.head, [image]), 0) for image in images] for images in sums]]
