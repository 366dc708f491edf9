"""The meter on spiking modules and on whole models of the zoo, beside a count of what their parts were heard to send."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from bruteforce import (
    Sends,
    by_convolution,
    by_linear,
    dense_convolution,
    dense_linear,
    either,
    firing,
    flat,
    flipped,
    metered,
    product,
    spent,
    spikes,
    together,
    whole,
)
from conftest import enliven
from torch import Tensor, nn

from vit2snn.metering import Meter
from vit2snn.spiking import (
    LIF,
    ExpertMixtureAttention,
    ExpertMixturePerceptron,
    GridConv2d,
    IntegerLIF,
    MembraneShortcut,
    QKChannelAttention,
    QKMixedAttention,
    QKTokenAttention,
    SEWShortcut,
    SpikeDrivenSelfAttention,
    SpikingMLP,
    SpikingSelfAttention,
    TemporalInteraction,
    TernaryLIF,
    share_clock,
    simulate,
)

T, B = 3, 2
Heard = dict[str, list[tuple[Tensor, Tensor]]]
Counts = dict[str, list[list[list[tuple[int, int]]]]]  # of each module's operations, of each timestep and image


@torch.no_grad()
def counted(network: nn.Module, clock: Any, images: int, run: Callable[[], object]) -> Counts:
    """All operations of a run in chunks of one timestep, by module."""
    heard: dict[int, Heard] = defaultdict(lambda: defaultdict(list))

    def hear(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        heard[clock.elapsed][name].append((inputs[0], output))

    handles = [module.register_forward_hook(partial(hear, name)) for name, module in network.named_modules()]
    run()
    for handle in handles:
        handle.remove()
    counts: Counts = {}
    for t, at in heard.items():
        for name, module in network.named_modules():
            if name in at:
                operations = [_of_image(name, module, at, i, images) for i in range(images)]
                for index in range(len(operations[0])):
                    table = counts.setdefault(name, [])
                    if len(table) <= index:
                        table.append([[(0, 0)] * images for _ in range(len(heard))])
                    table[index][t] = [operation[index] for operation in operations]
    return counts


def _of_image(name: str, module: nn.Module, at: Heard, i: int, images: int) -> list[tuple[int, int]]:
    """(accumulates, multiply-accumulates) of each operation of a module, in one timestep."""

    def out(child: str, call: int = -1) -> Tensor:
        return at[f"{name}.{child}"][call][1][i]

    found = []
    for x, _ in at[name]:
        parts = x.unflatten(0, (images, -1))[i].tolist()
        if isinstance(module, nn.MaxPool2d):
            found.append((firing(parts) if whole(x.tolist()) else len(flat(parts)), 0))
        elif isinstance(module, (nn.Conv2d, nn.Conv1d, nn.Linear)):
            linear = isinstance(module, nn.Linear)
            sparse, dense = (by_linear, dense_linear) if linear else (by_convolution, dense_convolution)
            added = whole(x.tolist())
            by: Any = sparse if added else dense
            count = sum(by(module, part) for part in parts)
            found.append((count, 0) if added else (0, count))
    if found:
        return found
    if isinstance(module, (SpikingSelfAttention, ExpertMixtureAttention)):
        shared = isinstance(module, ExpertMixtureAttention)
        k, v = (out(side).flatten(1) for side in ("key", "value"))
        heads = 1 if shared else module.num_heads
        q, k, v = out("interaction").tolist(), *(side.unflatten(0, (heads, -1)).tolist() for side in (k, v))
        products = _attend(q, k, v)
        if shared:
            gated = out("router").flatten(1).unsqueeze(1) * out("neuron")
            products += [firing(gated.tolist()), spikes(gated.tolist())]
        return [(count, 0) for count in products]
    if isinstance(module, ExpertMixturePerceptron):
        return [(together(out("router").tolist(), out("expand").chunk(2)[1].tolist()), 0)]
    if isinstance(module, SpikeDrivenSelfAttention):
        k, v = out("key").flatten(1), out("value").flatten(1)
        if isinstance(module.erode, nn.MaxPool2d):
            k, v = out("erode", 0).flatten(1), out("erode", 1).flatten(1)
        both = (k * v).unflatten(0, (module.num_heads, -1))
        summed = out("erode", 2) if isinstance(module.erode, nn.MaxPool2d) else both
        q, mask = out("interaction"), out("neuron")
        return [(firing(both.tolist()), 0), (spikes(summed.tolist()), 0), (firing((q * mask).tolist()), 0)]
    if isinstance(module, (QKTokenAttention, QKMixedAttention)):
        q, k = out("interaction"), out("key").flatten(1).unflatten(0, (module.num_heads, -1))
        if isinstance(module, QKTokenAttention):
            pairs = [(q, k, out("neuron"))]
        else:
            half = module.num_heads // 2
            pairs = [(q[:half], k[:half], out("token_neuron")), (q[half:], k[half:], out("channel_neuron"))]
        return [
            (count, 0)
            for query, key, bit in pairs
            for count in (spikes(query.tolist()), together(bit.expand_as(key).tolist(), key.tolist()))
        ]
    return []


def _attend(q: Any, k: Any, v: Any) -> list[int]:
    """The two products of v kᵀ q, in the order that takes less; matrices by head, of channels by tokens."""
    first, second = [], []
    if len(q[0][0]) > len(q[0]):
        mixed = [product(value, flipped(key)) for key, value in zip(k, v, strict=True)]
        first = [either(value, flipped(key)) for key, value in zip(k, v, strict=True)]
        second = [either(mixed[head % len(mixed)], query) for head, query in enumerate(q)]
    else:
        for head, query in enumerate(q):
            first.append(either(flipped(k[head % len(k)]), query))
            second.append(either(v[head % len(v)], product(flipped(k[head % len(k)]), query)))
    return [min(sum(option) for option in zip(*counts, strict=True)) for counts in (first, second)]


def check(meter: Meter, counts: Counts) -> None:
    tallies = defaultdict(list)
    for tally in meter.tallies:
        tallies[tally.module].append(tally)
    assert {name: len(found) for name, found in tallies.items()} == {name: len(c) for name, c in counts.items()}
    for name, operations in counts.items():
        for tally, by_hand in zip(tallies[name], operations, strict=True):
            expected = [[sum(image[kind] for image in images) for images in by_hand] for kind in (0, 1)]
            assert [tally.accumulates.tolist(), tally.multiplies.tolist()] == expected, f"{name} {tally.function}"
    every = [operation for operations in counts.values() for operation in operations]
    images = range(len(every[0][0]))
    assert spent(meter) == [
        [tuple(sum(operation[t][i][kind] for operation in every) for kind in (0, 1)) for i in images]
        for t in range(len(every[0]))
    ]


def lively(module: nn.Module, frames: Tensor) -> nn.Sequential:
    network = nn.Sequential(Sends(), module)
    share_clock(network)
    return enliven(network, frames.flatten(0, 1))  # type: ignore[return-value]


MODULES: dict[str, Callable[[Any], nn.Module]] = {
    "SSA": lambda neuron: SpikingSelfAttention(8, 2, neuron),
    "QKTA": lambda neuron: QKTokenAttention(8, 2, neuron),
    "QKCA": lambda neuron: QKChannelAttention(8, 2, neuron),
    "QKMA": lambda neuron: QKMixedAttention(8, 2, neuron),
    "SDSA": lambda neuron: SpikeDrivenSelfAttention(8, 2, neuron),
    "SDSA, pooled": lambda neuron: SpikeDrivenSelfAttention(8, 2, neuron, pooled=True),
    "EMSA": lambda neuron: ExpertMixtureAttention(8, neuron, experts=3, expert_dim=4),
    "EMSA, small": lambda neuron: ExpertMixtureAttention(8, neuron, experts=3, expert_dim=10, value_dim=5),
    "EMSP": lambda neuron: ExpertMixturePerceptron(8, 12, neuron),
    "MLP": lambda neuron: SpikingMLP(8, 12, neuron),
    "SEW": lambda neuron: nn.Sequential(
        SEWShortcut(SpikingMLP(8, 12, neuron), neuron), SEWShortcut(SpikingSelfAttention(8, 2, neuron), neuron)
    ),
    "membrane": lambda neuron: nn.Sequential(
        MembraneShortcut(SpikingSelfAttention(8, 2, neuron), neuron), MembraneShortcut(SpikingMLP(8, 12, neuron), neuron)
    ),
}


@pytest.mark.parametrize("tokens", [(1, 3), (3, 3)])
@pytest.mark.parametrize("name", MODULES)
def test_every_operation_of_a_spiking_module(name: str, tokens: tuple[int, int]) -> None:
    frames = torch.randint(0, 3, (T, B, 8, *tokens)).float()
    network = lively(MODULES[name](LIF), frames)
    counts = counted(network, network[0].clock, B, lambda: simulate(network, network[0].clock, frames, T, 1))
    for chunk in (None, 1, 2):
        check(metered_as_it_is(network, frames, chunk), counts)


@torch.no_grad()
def metered_as_it_is(network: nn.Sequential, frames: Tensor, chunk: int | None) -> Meter:
    with Meter(network) as meter:
        simulate(network, network[0].clock, meter.show(frames), T, chunk)
    return meter


@pytest.mark.parametrize("attention", [SpikingSelfAttention, QKTokenAttention, SpikeDrivenSelfAttention])
def test_temporal_interaction_convolves_what_was_sent_a_timestep_before(attention: Any) -> None:
    frames = torch.randint(0, 2, (T, B, 8, 2, 3)).float()
    network = lively(attention(8, 2, LIF, interaction=TemporalInteraction(6, thresholds=(0.01, 0.01))), frames)
    network[1].interaction.conv.weight.data.abs_()
    counts = counted(network, network[0].clock, B, lambda: simulate(network, network[0].clock, frames, T, 1))
    (convolution,) = counts["1.interaction.conv"]
    assert convolution[0] == [(0, 0)] * B and all(count > 0 for images in convolution[1:] for count, _ in images)
    for chunk in (None, 1, 2):
        check(metered_as_it_is(network, frames, chunk), counts)


@pytest.mark.parametrize("neuron", [partial(IntegerLIF, threshold=0.5), TernaryLIF])
@pytest.mark.parametrize("name", ["SSA", "MLP", "membrane"])
def test_neurons_that_send_integers_or_two_signs(name: str, neuron: Any) -> None:
    frames = torch.randint(0, 3, (T, B, 8, 2, 3)).float()
    network = lively(MODULES[name](neuron), frames)
    counts = counted(network, network[0].clock, B, lambda: simulate(network, network[0].clock, frames, T, 1))
    check(metered_as_it_is(network, frames, None), counts)


class Multiplies(nn.Module):
    """Two signals that come in one."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(*x.unbind(1))


FUNCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Any, Any], tuple[int, int]]]] = {
    "@": (lambda a, b: a @ b.transpose(-1, -2), lambda a, b: either(a, flipped(b))),
    "transposed @": (lambda a, b: a.transpose(-1, -2) @ b, lambda a, b: either(flipped(a), b)),
    "bmm": (lambda a, b: torch.bmm(a, b.mT), lambda a, b: either(a, flipped(b))),
    "einsum": (lambda a, b: torch.einsum("bik,bjk->bij", a, b), lambda a, b: either(a, flipped(b))),
    "*": (lambda a, b: a * b, lambda a, b: tuple(sum(map(_times, *pair)) for pair in ((flat(a), flat(b)), (flat(b), flat(a))))),
}


def _times(one: float, other: float) -> int:
    return int(abs(one)) if other else 0


@pytest.mark.parametrize("highest", [(1, 1), (1, 4), (4, 1), (3, 4)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_where_integers_meet_the_spikes_of_one_add_what_the_other_holds(name: str, highest: tuple[int, int]) -> None:
    function, by_hand = FUNCTIONS[name]
    frames = torch.stack([torch.randint(-high, high + 1, (T, 3, 4, 5)).float() for high in highest], 2)
    frames[:, 1] = frames[:, 1].clamp(-1, 2)
    network = nn.Sequential(Sends(), Multiplies(function))
    counts = [[(min(by_hand(*pair)), 0) for pair in images] for images in frames.tolist()]
    assert spent(metered(network, frames)) == counts
    alone = [spent(metered(network, frames[:, i : i + 1])) for i in range(3)]
    assert [[run[t][0] for run in alone] for t in range(T)] == counts


def test_a_number_makes_multiplications_of_a_whole_product() -> None:
    frames = torch.stack([torch.randn(T, B, 4, 5), torch.randint(0, 2, (T, B, 4, 5)).float()], 2)
    meter = metered(nn.Sequential(Sends(), Multiplies(FUNCTIONS["@"][0])), frames)
    assert spent(meter) == [[(0, 4 * 5 * 4)] * B] * T


def test_tokens_on_a_grid_and_tokens_apart_from_it() -> None:
    conv = GridConv2d(4, 3, (2, 3), prefix=2, groups=4)
    frames = torch.randint(0, 3, (T, B, 4, 1, 8)).float()
    inner = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    counts = [
        [
            (by_convolution(inner, image[:, 0, 2:].unflatten(1, (2, 3)).tolist()) + spikes(image[:, 0, :2].tolist()), 0)
            for image in images
        ]
        for images in frames
    ]
    assert spent(metered(nn.Sequential(Sends(), conv), frames)) == counts


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
    counts = counted(model, model.clock, B, lambda: model.readout(x, chunk=1))
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
