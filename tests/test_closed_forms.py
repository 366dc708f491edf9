"""What a ViT costs in closed form, in terms of its sizes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import timm
import torch
from conftest import make_recipe, make_vit
from torch import Tensor, nn

from vit2snn.convert import SpikingModel, to_spiking
from vit2snn.convert.conversion import structure
from vit2snn.measure import FLOAT32, MODELS, Dense, EnergyModel, Meter, energy
from vit2snn.measure.spending import dense


@dataclass(frozen=True)
class Sizes:
    image: int = 16
    patch: int = 4
    dim: int = 16
    depth: int = 2
    heads: int = 2
    ratio: int = 4
    classes: int = 7
    channels: int = 3

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def tokens(self) -> int:
        return self.patches + 1

    def make(self, **more: Any) -> nn.Module:
        return make_vit(
            img_size=self.image, patch_size=self.patch, embed_dim=self.dim, depth=self.depth, num_heads=self.heads,
            mlp_ratio=self.ratio, num_classes=self.classes, in_chans=self.channels, **more,
        )  # fmt: skip

    def images(self, count: int) -> Tensor:
        return torch.randn(count, self.channels, self.image, self.image)

    def exact(self) -> SpikingModel:
        """A converted network with exact neurons: it computes the ANN."""
        return structure(self.make(), make_recipe(levels=0), (self.channels, self.image, self.image))

    def macs(self) -> dict[tuple[str, str], int]:
        """Multiply-accumulates of every layer and of both products of a block."""
        n, d = self.tokens, self.dim
        found = {("patch_embed.proj", "conv2d"): self.patches * d * self.channels * self.patch**2}
        for block in range(self.depth):
            name = f"blocks.{block}"
            found[name + ".attn.qkv", "linear"] = n * d * 3 * d
            found[name + ".attn.spiking_attention", "q k"] = n * n * d
            found[name + ".attn.spiking_attention", "w v"] = n * n * d
            found[name + ".attn.proj", "linear"] = n * d * d
            found[name + ".mlp.fc1", "linear"] = n * d * self.ratio * d
            found[name + ".mlp.fc2", "linear"] = n * d * self.ratio * d
        return found | {("head", "linear"): d * self.classes}

    def total(self) -> int:
        n, d = self.tokens, self.dim
        block = (4 + 2 * self.ratio) * n * d**2 + 2 * n**2 * d
        return self.patches * d * self.channels * self.patch**2 + self.depth * block + d * self.classes

    def values(self) -> int:
        """That go through LayerNorm, softmax and GELU."""
        n, d = self.tokens, self.dim
        return (2 * self.depth + 1) * n * d + self.depth * (self.heads * n**2 + n * self.ratio * d)


SIZES = {
    "small": Sizes(),
    "deep": Sizes(depth=4, dim=8, classes=3),
    "many heads": Sizes(dim=32, heads=8, depth=1),
    "wide perceptron": Sizes(ratio=6, depth=1),
    "large patches": Sizes(image=32, patch=16, depth=1),
    "many tokens": Sizes(image=24, patch=3, depth=1, channels=1),
}
by_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


@by_size
@torch.no_grad()
def test_multiply_accumulates_of_each_operation(sizes: Sizes) -> None:
    snn, images = sizes.exact(), sizes.images(3)
    with Meter(snn.network) as meter:
        snn(meter.show(images), 2, chunk=1)
    parts = itertools.cycle(("q k", "w v"))
    operations = [tally for tally in meter.tallies if tally.kind != "function"]
    found = {(t.module, next(parts) if t.function == "matmul" else t.function): t.macs for t in operations}
    assert found == sizes.macs()
    assert sum(found.values()) == sizes.total()
    for tally in operations:
        assert tally.multiplies.tolist() == [3 * tally.macs] * 2
    functions = [tally for tally in meter.tallies if tally.kind == "function"]
    assert sum(tally.outputs for tally in functions) == sizes.values()
    assert len(functions) == sizes.depth * 4 + 1
    assert meter.spent().tolist() == [[[0, sizes.total() + 5 * sizes.values()]] * 3] * 2


@by_size
def test_an_ann_costs_its_layers_its_products_and_its_functions(sizes: Sizes) -> None:
    ann = dense(sizes.exact(), sizes.images(1))
    assert (ann.macs, ann.functions, ann.comparisons) == (sizes.total(), 5 * sizes.values(), 0)
    assert ann.energy() == pytest.approx(4.6 * (sizes.total() + 5 * sizes.values()))
    int8 = next(model for model in MODELS if "int8" in model.name)
    assert ann.energy(int8) == pytest.approx(0.23 * (sizes.total() + 5 * sizes.values()))


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_an_ann_that_is_not_converted_costs_the_same(fused: bool) -> None:
    sizes = SIZES["small"]
    model = sizes.make()
    for block in model.blocks:
        block.attn.fused_attn = fused
    with Meter(model) as meter:
        model(meter.show(sizes.images(3)))
    assert Dense.of(meter.tallies) == dense(sizes.exact(), sizes.images(1))


def test_an_ann_that_is_kept_as_a_teacher_costs_the_same() -> None:
    sizes = SIZES["small"]
    recipe = make_recipe(timesteps=2, attention="ssa", mlp="relu", norm="static", readout="mean", refit="none")
    snn = to_spiking(sizes.make(), recipe, sizes.images(4))
    assert snn.teacher is not None
    ann = dense(snn, sizes.images(2))
    assert (ann.macs, ann.functions) == (sizes.total(), 5 * sizes.values())


@torch.no_grad()
def test_words_of_an_ann_are_those_that_go_in_and_out_of_its_operations() -> None:
    sizes = replace(SIZES["small"], depth=1)
    n, d, h, m, c = sizes.tokens, sizes.dim, sizes.heads, sizes.ratio * sizes.dim, sizes.classes
    pixels = sizes.channels * sizes.patch**2
    layers = [  # inputs, weights and biases, outputs
        sizes.patches * pixels + (pixels + 1) * d + sizes.patches * d,
        n * d + (d + 1) * 3 * d + n * 3 * d,
        n * d + (d + 1) * d + n * d,
        n * d + (d + 1) * m + n * m,
        n * m + (m + 1) * d + n * d,
        d + (d + 1) * c + c,
    ]
    products = [2 * n * d + h * n * n, h * n * n + n * d + n * d]
    functions = [2 * 3 * n * d, 2 * h * n * n, 2 * n * m]
    assert dense(sizes.exact(), sizes.images(1)).words == sum(layers) + sum(products) + sum(functions)


@pytest.mark.parametrize("batch", ["relu", "max_pool"])
@torch.no_grad()
def test_comparisons_of_an_ann_are_accumulates_for_each_value_that_goes_in(batch: str) -> None:
    layer = nn.ReLU() if batch == "relu" else nn.MaxPool2d(2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), layer).eval()
    with Meter(model) as meter:
        model(meter.show(torch.randn(2, 3, 8, 8)))
    ann = Dense.of(meter.tallies)
    assert (ann.macs, ann.functions, ann.comparisons) == (64 * 4 * 27, 0, 4 * 64)
    assert ann.energy() == pytest.approx(4.6 * 6912 + 0.9 * 256)


@torch.no_grad()
def test_a_convolutional_network_of_timm_costs_its_layers() -> None:
    model = timm.create_model("resnet10t", num_classes=5).eval()
    with Meter(model) as meter:
        model(meter.show(torch.randn(1, 3, 32, 32)))
    macs = 0
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            (tally,) = (t for t in meter.tallies if t.module == meter.names[id(module)])
            places = tally.outputs // (module.out_channels if isinstance(module, nn.Conv2d) else module.out_features)
            assert tally.macs == places * module.weight.numel()
            macs += tally.macs
    ann = Dense.of(meter.tallies)
    assert ann.macs == macs > 0 and ann.functions == 0


def speaking(snn: SpikingModel) -> SpikingModel:
    """Every neuron sends whenever it may: it starts far from its target, and its spikes are tiny."""
    for neuron in snn.neurons().values():
        neuron.threshold, neuron.prior = torch.full((1,), 1e-3), torch.tensor(-1234.5)
    return snn


@by_size
@torch.no_grad()
def test_where_each_neuron_sends_one_spike_a_layer_adds_as_often_as_the_ann_multiplies(sizes: Sizes) -> None:
    recipe = make_recipe(levels=1, input_spikes=1)
    snn = speaking(structure(sizes.make(), recipe, (sizes.channels, sizes.image, sizes.image)))
    with Meter(snn.network) as meter:
        snn(meter.show(sizes.images(2)), 3, chunk=1)
    layers = [tally for tally in meter.tallies if tally.kind == "weighted"]
    assert len(layers) == 4 * sizes.depth + 2
    for tally in layers:
        (stream,) = tally.operands
        assert stream.spikes.tolist() == [2 * stream.elements] * 3
        assert tally.accumulates.tolist() == [2 * tally.macs] * 3, tally.module
    for tally in meter.tallies:
        if tally.kind == "product":  # S = S + Δq k' + q Δk'
            assert tally.accumulates.tolist() == [2 * 2 * tally.macs] * 3


@torch.no_grad()
def test_bursts_of_two_add_twice() -> None:
    sizes = SIZES["small"]
    recipe = make_recipe(levels=1, input_spikes=2, spikes_per_step=2)
    snn = speaking(structure(sizes.make(), recipe, (sizes.channels, sizes.image, sizes.image)))
    with Meter(snn.network) as meter:
        snn(meter.show(sizes.images(1)), 1, chunk=1)
    for tally in meter.tallies:
        if tally.macs:
            assert tally.accumulates.tolist() == [(2 if tally.kind == "weighted" else 4) * tally.macs]


def test_energy_of_counts_by_hand() -> None:
    counts = torch.tensor([[[10.0, 0.0], [0.0, 10.0]], [[100.0, 3.0], [0.0, 0.0]]], dtype=torch.float64)
    expected = torch.tensor([[9.0, 46.0], [90 + 13.8, 0.0]], dtype=torch.float64)
    assert torch.allclose(energy(counts), expected)
    assert torch.allclose(energy(counts, FLOAT32), expected)
    assert energy(counts[0, 0], EnergyModel("", mac=7.0, ac=2.0, source="")).item() == 20.0
    assert Dense(macs=100, functions=20, comparisons=10, words=0).energy() == pytest.approx(4.6 * 120 + 9.0)
    assert [(model.mac, model.ac) for model in MODELS] == [(4.6, 0.9), (1.5, 0.4), (3.2, 0.1), (0.23, 0.03)]
