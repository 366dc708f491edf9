"""The meter on converted networks, beside a run in which every spike of every neuron is caught and followed."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from functools import partial
from itertools import zip_longest
from typing import Any

import pytest
import timm
import torch
from bruteforce import by_convolution, by_linear, by_matrix, flat, flipped, spent
from conftest import make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.convert import SpikingModel, to_spiking
from vit2snn.measure import Meter
from vit2snn.spiking import CodedNeuron, Coding, Event, Hadamard, SpikingDotProductAttention, probing

T, B = 2, 2
SMALL = {"img_size": 8, "embed_dim": 8, "depth": 1, "num_classes": 3}
Counts = dict[str, list[list[list[int]]]]  # of each operation: of each timestep and image, accumulates and multiply-accumulates


def converted(**recipe: Any) -> SpikingModel:
    vit = make_vit(**SMALL)
    return to_spiking(vit, make_recipe(**{"timesteps": T, **recipe}), torch.randn(6, 3, 8, 8))


@torch.no_grad()
def metered(snn: SpikingModel, images: Tensor) -> Meter:
    with Meter(snn.network) as meter:
        snn(meter.show(images), T, chunk=1)
    return meter


class Step:
    """What a neuron did in one of its steps: what it sent, and what it holds before and after, of each image."""

    def __init__(self, neuron: CodedNeuron, t: int, spikes: list[Tensor], m: Tensor) -> None:
        rate, decaying = neuron.coding is Coding.RATE, neuron.coding is Coding.DECAYING
        bias = neuron.bias[t] if t < len(neuron.bias) else torch.zeros(())
        total = sum(spikes[1:], spikes[0]) + bias
        relaxed = t / (t + 1) * m + (1 - t / (t + 1)) * neuron.prior if rate else m
        self.m = relaxed + (1 / (t + 1) * total if rate or decaying else total)
        self.sent = sum((spike != 0).int() for spike in spikes)
        self.before, self.after = self._held(neuron, m), self._held(neuron, self.m)
        self.bias = bias if bias.any() else None

    def by_head(self) -> Step:
        """The same with windows ``[B, windows, heads, ...]`` as so many heads."""
        other = copy.copy(self)
        if self.sent.ndim == 5:
            for name in ("sent", "before", "after"):
                setattr(other, name, getattr(self, name).flatten(1, 2))
            if self.bias is not None:
                other.bias = self.bias.expand(self.sent.shape[1], *self.bias.shape[-3:]).flatten(0, 1)
        return other

    def resting(self) -> Step:
        """The step after it, in which it does nothing."""
        other = copy.copy(self)
        other.sent, other.before, other.bias = torch.zeros_like(self.sent), self.after, None
        return other

    def turned(self) -> Step:
        """The same of the transposed matrices."""
        other = copy.copy(self)
        for name in ("sent", "before", "after", "bias"):
            setattr(other, name, None if getattr(self, name) is None else getattr(self, name).transpose(-1, -2))
        return other

    @staticmethod
    def _held(neuron: CodedNeuron, m: Tensor) -> Tensor:
        """In how many sums a value is: the mean of spikes, which is rescaled in every timestep, and what it started from."""
        if neuron.coding is Coding.RATE:
            return (m - neuron.prior != 0).int() + (neuron.prior.expand(m.shape) != 0).int()
        return (m != 0).int()


@torch.no_grad()
def followed(snn: SpikingModel, images: Tensor) -> dict[str, list[list[Step]]]:
    """The steps that each neuron takes in each timestep."""
    caught: dict[str, list[list[Step]]] = defaultdict(list)

    def catch(name: str, event: Event) -> None:
        neuron = snn.neurons()[name]
        m = neuron.prior.expand(event.target.shape)
        if not neuron.synchronous and event.t:
            m = caught[name][-1][-1].m
        count = event.t + 1 + len(neuron.threshold) - T if neuron.synchronous else 1
        each, steps = len(event.spikes) // count, []
        for index in range(count):
            t = index if neuron.synchronous else event.t
            steps.append(Step(neuron, t, event.spikes[index * each : (index + 1) * each], m))
            m = steps[-1].m
        assert torch.equal(m, event.decoded)
        caught[name].append(steps)

    with probing(snn.network, {name: partial(catch, name) for name in snn.neurons()}):
        snn(images, T)
    return caught


def versions(neuron: CodedNeuron) -> int:
    """How many of the neuron's levels differ by more than a shift."""
    assert neuron.alphabet is not None
    ratios = neuron.ratio.flatten().tolist() or [neuron.alphabet.ratio]
    octaves = [k * math.log2(ratio) for ratio in ratios for k in range(neuron.alphabet.levels)]
    return len({round(octave % 1, 3) % 1 for octave in octaves})


def product(first: tuple[CodedNeuron, Step], second: tuple[CodedNeuron, Step], image: int) -> tuple[int, int]:
    """One step of a product of two decoded values, ``[heads, rows, inner]`` and ``[heads, inner, columns]``."""
    (one, mine), (other, its) = first, second
    accumulates = multiplies = 0
    heads, rows, inner = mine.sent[image].shape
    columns = its.sent.shape[-1]
    for head in range(heads):
        accumulates += met(mine.sent[image][head].tolist(), its.before[image][head].tolist())
        accumulates += met(flipped(its.sent[image][head].tolist()), flipped(mine.after[image][head].tolist()))
        if mine.bias is not None:
            multiplies += columns * len(flat(mine.bias[head].tolist()))
            if mine.bias.shape[2] == 1:  # alike for all that is summed: the other operand is summed first
                accumulates += inner * columns
        if its.bias is not None:
            multiplies += rows * len(flat(its.bias[head].tolist()))
            if its.bias.shape[1] == 1:
                accumulates += inner * rows
    for step, partner in ((mine, other), (its, one)):
        changes = sum(flat(step.sent[image].tolist()))
        if step.bias is not None:
            changes += sum(flat((step.bias.expand(step.sent[image].shape) != 0).int().tolist()))
        accumulates += (versions(partner) - 1) * changes
    return accumulates, multiplies


def met(sent: Any, held: Any) -> int:
    """Spikes of the first matrix, each with all sums of the second that it is added to."""
    return sum(by_matrix(sent, [[value > index for value in row] for row in held]) for index in range(2))


@torch.no_grad()
def counted(snn: SpikingModel, images: Tensor) -> Counts:
    """All operations of a converted network by the module that makes them."""
    caught = followed(snn, images)
    found: Counts = {}

    def weighted(name: str, module: Any) -> list[list[list[int]]]:
        by = by_linear if isinstance(module, nn.Linear) else by_convolution
        steps = caught[f"{name}.neuron"]
        return [[[sum(by(module, step.sent[i].tolist()) for step in each), 0] for i in range(B)] for each in steps]

    def products(name: str, first: str, second: str, turned: bool) -> list[list[list[int]]]:
        pair = [snn.neurons()[f"{name}.{side}"] for side in (first, second)]
        counts = []
        for mine, its in zip(*(caught[f"{name}.{side}"] for side in (first, second)), strict=True):
            both = [(a or mine[-1].resting(), b or its[-1].resting()) for a, b in zip_longest(mine, its)]
            steps = [(a.by_head(), b.turned() if turned else b.by_head()) for a, b in both]
            images = [[product((pair[0], a), (pair[1], b), i) for a, b in steps] for i in range(B)]
            counts.append([[sum(ac for ac, _ in each), sum(mac for _, mac in each)] for each in images])
        return counts

    def charge(name: str, index: int, each: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.numel() // B
        found.setdefault(name, []).append([[each * values * (index == 0), each * values * (index == 1)]] * B)

    handles = []
    for name, module in snn.network.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.Softmax, nn.GELU)):
            handles.append(module.register_forward_hook(partial(charge, name, 1, 5)))
        elif isinstance(module, Hadamard):
            handles.append(module.register_forward_hook(partial(charge, name, 0, int(math.log2(len(module.matrix))))))
        elif isinstance(module, SpikingDotProductAttention):
            found[f"{name} qk"] = products(name, "query", "key", turned=True)
            found[f"{name} wv"] = products(name, "weights", "value", turned=False)
        elif hasattr(module, "spiking_operand0"):
            found[f"{name} qk"] = products(name, "spiking_operand0", "spiking_operand1", turned=False)
            found[f"{name} wv"] = products(name, "spiking_operand0_1", "spiking_operand1_1", turned=False)
        elif isinstance(getattr(module, "neuron", None), CodedNeuron):
            found[name] = weighted(name, module)
    snn(images, T, chunk=1)
    for handle in handles:
        handle.remove()
    return found


RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "without bias": {"bias": False},
    "bursts": {"levels": 3, "ratio": 2.0, "spikes_per_step": 2, "bias": False},
    "bursts with bias": {"levels": 3, "ratio": 2.0, "spikes_per_step": 2},
    "bursts of several versions": {"levels": 6, "ratio": 2**0.5, "observer": "percentile", "spikes_per_step": 2, "bias": False},
    "several versions": {"ratio": 2 ** (1 / 3), "observer": "percentile", "bias": False},
    "several versions and a bias": {"ratio": 2 ** (1 / 3), "observer": "percentile"},
    "fewer levels than versions": {"levels": 2, "ratio": 2**0.25, "observer": "percentile", "bias": False},
    "another ratio": {"levels": 4, "ratio": 3.0, "observer": "percentile", "bias": False},
    "rotation": {"rotation": True, "levels": 2, "ratio": 2.0},
    "rate": {"coding": "rate", "bias": False},
    "rate with bias": {"coding": "rate", "levels": 4, "ratio": 2.0},
    "binary rate": {"coding": "rate", "levels": 1, "signed": False, "prior": "none", "bias": False},
    "rate from minimum": {"coding": "rate", "levels": 1, "signed": False, "prior": "minimum"},
    "decaying": {"coding": "decaying", "levels": 4, "ratio": 2.0},
    "layer-synchronous": {"schedule": "layer-synchronous", "bias": False},
    "layer-synchronous with bias": {"schedule": "layer-synchronous", "spikes_per_step": 2, "levels": 4, "ratio": 2.0},
    "without prior": {"prior": "none"},
    "by channel": {"granularity": "channel", "levels": 4, "ratio": 2.0},
    "long bursts of attention": {"attention_spikes": 3, "levels": 4, "ratio": 2.0},
}


def check(snn: SpikingModel, images: Tensor) -> None:
    found, meter = counted(snn, images), metered(snn, images)
    tallies, parts = {}, defaultdict(lambda: iter((" qk", " wv")))
    for tally in meter.tallies:
        tallies[tally.module + (next(parts[tally.module]) if tally.kind == "product" else "")] = tally
    assert set(tallies) == set(found)
    for key, counts in found.items():
        got = [tallies[key].accumulates.tolist(), tallies[key].multiplies.tolist()]
        assert got == [[sum(image[kind] for image in images) for images in counts] for kind in (0, 1)], key
    whole = [[tuple(sum(c[t][i][kind] for c in found.values()) for kind in (0, 1)) for i in range(B)] for t in range(T)]
    assert spent(meter) == whole


@pytest.mark.parametrize("name", RECIPES)
def test_every_operation_of_a_converted_network(name: str) -> None:
    check(converted(**RECIPES[name]), torch.randn(B, 3, 8, 8))


@pytest.mark.parametrize("longer", ["query", "weights", "value"])
def test_every_operation_of_a_layer_synchronous_network_in_which_some_layers_take_longer(longer: str) -> None:
    snn = converted(schedule="layer-synchronous", levels=1)
    neuron = snn.neurons()[f"blocks.0.attn.spiking_attention.{longer}"]
    for name in ("threshold", "ratio", "silence"):
        table = getattr(neuron, name)
        setattr(neuron, name, torch.cat([table, table[-1:] * (0.5 if name == "threshold" else 1)]))
    check(snn, torch.randn(B, 3, 8, 8))


@pytest.mark.parametrize("recipe", [{"bias": False}, {}, {"levels": 4, "ratio": 2.0}])
def test_every_operation_of_a_network_with_windows(recipe: dict[str, Any]) -> None:
    size = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **size, num_classes=3).eval()
    snn = to_spiking(swin, make_recipe(timesteps=T, **recipe), torch.randn(6, 3, 16, 16))
    check(snn, torch.randn(B, 3, 16, 16))


@torch.no_grad()
def test_exact_neurons_leave_the_multiplications_of_the_ann() -> None:
    meter = metered(converted(levels=0), torch.randn(B, 3, 8, 8))
    assert sum(tally.accumulates.sum() for tally in meter.tallies) == 0
    for tally in meter.tallies:
        assert tally.multiplies.tolist() == [B * (tally.macs or 5 * tally.outputs)] * T
    ignored = metered(converted(ignore=("blocks.0.mlp.fc2",)), torch.randn(B, 3, 8, 8))
    dense = [tally for tally in ignored.tallies if tally.kind == "weighted" and tally.multiplies.any()]
    assert [(tally.module, tally.multiplies.tolist()) for tally in dense] == [("blocks.0.mlp.fc2", [B * 5 * 32 * 8] * T)]


@pytest.mark.parametrize("recipe", [{}, {"schedule": "layer-synchronous"}, {"coding": "rate", "rotation": True}])
@torch.no_grad()
def test_metering_changes_no_logits_and_depends_on_no_other_image(recipe: dict[str, Any]) -> None:
    snn, images = converted(**recipe), torch.randn(3, 3, 8, 8)
    logits = snn(images, T, chunk=1)
    with Meter(snn.network, observing=True) as observed:
        assert torch.equal(snn(observed.show(images), T, chunk=1), logits)
    meter = metered(snn, images)
    assert torch.equal(observed.spent(), meter.spent())
    assert torch.equal(torch.cat([metered(snn, images[i : i + 1]).spent() for i in range(3)], 1), meter.spent())


@torch.no_grad()
def test_nothing_is_counted_after_the_context_or_after_a_failure_within_it() -> None:
    snn, images = converted(), torch.randn(B, 3, 8, 8)
    logits, expected = snn(images, T), metered(snn, images).spent()

    def fail(*arguments: object) -> None:
        raise KeyError("stop")

    for name in ("blocks.0.attn.qkv", "blocks.0.attn.spiking_attention.key", "blocks.0.attn.spiking_attention.softmax", "head"):
        handle = snn.network.get_submodule(name).register_forward_hook(fail)
        with pytest.raises(KeyError, match="stop"), Meter(snn.network) as meter:
            snn(meter.show(images), T, chunk=1)
        handle.remove()
        before = meter.spent().clone()
        assert torch.equal(snn(images, T), logits)
        assert torch.equal(meter.spent(), before)
        assert not torch.overrides._get_current_function_mode_stack()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in snn.modules())
        assert torch.equal(metered(snn, images).spent(), expected)


@pytest.mark.parametrize("chunk", [None, 2])
def test_coded_neurons_are_metered_timestep_by_timestep_only(chunk: int | None) -> None:
    snn, images = converted(), torch.randn(B, 3, 8, 8)
    with torch.no_grad(), pytest.raises(RuntimeError, match="got 2: pass chunk=1"), Meter(snn.network) as meter:
        snn(meter.show(images), T, chunk=chunk)
    assert not torch.overrides._get_current_function_mode_stack()
    assert snn(images, T).shape == (T, B, 3)
