"""The meter on substitutes with membrane neurons, beside a count of the spikes that they were heard to send."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import pytest
import torch
from bruteforce import by_convolution, by_linear, either, firing, flat, flipped, product, spikes
from conftest import make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.convert import SpikingModel, to_spiking
from vit2snn.measure import Meter
from vit2snn.spiking import Balanced, GridConv2d
from vit2snn.spiking.substitutes import ExpertHeads, ExpertMlp, LinearAttention, RoutedMixers, SpikeDrivenGate
from vit2snn.spiking.substitutes.experts import MIXERS
from vit2snn.spiking.substitutes.gates import Gate, QKGate

T, B = 3, 2
RECIPES: dict[str, dict[str, Any]] = {
    "linear attention": {"attention": {"0": "qk-token+conv", "1": "ssa+conv"}, "mlp": "relu"},
    "gates alone": {"attention": {"0": "sdsa", "1": "qk-channel"}, "mlp": "emsp"},
    "experts": {"attention": {"0": "emsa", "1": "experts"}, "mlp": "relu", "neuron": "lif"},
    "integers": {"attention": {"0": "ssa", "1": "qk-channel"}, "mlp": "emsp", "neuron": "integer-lif"},
    "two signs": {"attention": {"0": "sdsa+ssa", "1": "emsa"}, "mlp": "relu", "neuron": "ternary"},
}

Heard = dict[str, list[Tensor]]  # at each timestep: what modules got, and under names with "->" what they gave


def counts(x: Tensor) -> Tensor:
    """Spikes of whatever height as whole numbers; in some timestep some image has a single one."""
    whole = x / x[x != 0].abs().min()
    torch.testing.assert_close(whole, whole.round())
    return whole.round()


@torch.no_grad()
def listened(snn: SpikingModel, images: Tensor) -> Heard:
    """What modules got and gave."""
    heard: Heard = defaultdict(list)

    def hear(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        heard[f"->{name}"].append((output / module.height).round() if isinstance(module, Balanced) else output)
        heard[name].append(inputs[0])

    for name, module in snn.network.named_modules():
        module.register_forward_hook(partial(hear, name))
    snn(images, T, chunk=1)
    for module in snn.network.modules():
        module._forward_hooks.clear()
    return heard


def gated(gate: Tensor, value: Tensor) -> int:
    """The spikes of either add what the other one holds, and those of which there are fewer do."""
    pairs = list(zip(*(flat(x.tolist()) for x in torch.broadcast_tensors(gate, value)), strict=True))
    return int(min(sum(abs(a) for a, b in pairs if b), sum(abs(b) for a, b in pairs if a)))


def fewer(firsts: Tensor, seconds: Tensor) -> int:
    """The same of products of matrices, all together: ``[products, ., .]`` both."""
    found = [either(a, b) for a, b in zip(firsts.tolist(), seconds.tolist(), strict=True)]
    return min(map(sum, zip(*found, strict=True)))


def attended(q: Tensor, k: Tensor, v: Tensor) -> list[int]:
    """q (kᵀ v) of queries ``[products, N, d]``, with one key and value for each or for all."""
    mixed = torch.tensor([product(flipped(a), b) for a, b in zip(k.tolist(), v.tolist(), strict=True)])
    return [fewer(k.mT, v), fewer(q, mixed.expand(len(q), -1, -1))]


def of_image(name: str, module: nn.Module, heard: Heard, t: int, i: int) -> list[int] | None:
    """Accumulates of each operation of a module for an image, in one timestep; None for what is not looked at."""

    def out(child: str) -> Tensor:
        return heard[f"->{name}.{child}"][t][i]

    if isinstance(module, LinearAttention):
        return attended(out("rectify_query"), out("rectify_key"), out("spiking_operand1"))
    if isinstance(module, Gate):
        return [spikes(out("rectify").tolist())]
    if isinstance(module, QKGate):
        return [gated(out("gate.clip"), out("spiking_operand1"))]
    if isinstance(module, SpikeDrivenGate):
        both = out("rectify_query") * out("rectify_key")
        meet = gated(out("rectify_query"), out("rectify_key"))
        return [meet, spikes(both.tolist()), gated(out("clip"), out("spiking_operand1_1"))]
    if isinstance(module, ExpertHeads):
        products = attended(out("rectify_query"), out("rectify_key"), out("spiking_operand1"))
        routes, experts = out("clip").mT.unsqueeze(-1), out("rectify")
        return [*products, gated(routes, experts), spikes((routes * experts).tolist())]
    if isinstance(module, RoutedMixers):
        routes, mixed = out("rectify").unflatten(-1, (MIXERS, -1)).permute(1, 2, 0).unsqueeze(-1), out("spiking_operand1_1")
        tokens = len(out("rectify"))
        value = spikes(out("spiking_operand0").tolist()) * MIXERS * tokens
        return [value, gated(routes, mixed), spikes((routes * mixed).tolist())]
    if isinstance(module, ExpertMlp):
        return [gated(out("clip")[:, 0].mT, out("act"))]
    if isinstance(module, GridConv2d):
        if f"->{name}.spiking_operand0" in heard:
            grid, alone = out("spiking_operand0"), out("spiking_operand0_1")
        else:
            given = counts(torch.stack(heard[name]))[t][i]
            grid, alone = given[:, 0, module.prefix :].unflatten(1, module.grid), given[:, 0, : module.prefix]
        inner = nn.Conv2d(len(grid), len(grid), 3, padding=1, groups=len(grid))
        return [by_convolution(inner, grid.tolist()), spikes(alone.tolist())]
    if isinstance(module, nn.Linear):
        driven = f"->{name}.neuron" in heard
        x = heard[f"->{name}.neuron"] if driven else counts(torch.stack(heard[name]))
        return [by_linear(module, x[t][i].tolist())]
    return None


@pytest.mark.parametrize("name", RECIPES)
def test_accumulates_of_substitutes_are_those_of_the_spikes_that_were_heard(name: str) -> None:
    recipe = make_recipe(timesteps=T, norm="static", refit="none", **RECIPES[name])
    snn = to_spiking(make_vit(img_size=12, embed_dim=8, num_classes=3), recipe, torch.randn(8, 3, 12, 12)).double()
    images = torch.randn(B, 3, 12, 12).double()
    heard = listened(snn, images)
    with torch.no_grad(), Meter(snn.network, observing=True) as meter:
        snn(meter.show(images), T, chunk=1)
    tallies = defaultdict(list)
    for tally in meter.tallies:
        tallies[tally.module].append(tally)
    assert all(not tally.multiplies.any() for tally in meter.tallies if tally.module != "patch_embed.proj")
    for path, module in snn.network.named_modules():
        if path not in tallies or path == "patch_embed.proj":
            continue
        by_hand = [[of_image(path, module, heard, t, i) for i in range(B)] for t in range(T)]
        assert by_hand[0][0] is not None, path
        expected = [[sum(image[index] for image in images) for images in by_hand] for index in range(len(by_hand[0][0]))]
        assert [tally.accumulates.tolist() for tally in tallies[path]] == expected, path
    assert all(firing(given.tolist()) for given in heard["->blocks.0.attn.qkv.neuron"])
