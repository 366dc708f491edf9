"""Kinds of branches: what each says for itself, and that a new one is known everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import make_recipe, make_vit
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vit2snn.convert import candidates, plan, to_spiking
from vit2snn.convert.auto import choose, tried
from vit2snn.convert.branches import own_maps
from vit2snn.errors import ModelError, RecipeError
from vit2snn.measure import diagnose
from vit2snn.search import TASKS, Space, arguments, count, create
from vit2snn.spiking import LIF, Balanced, BlockSize, ConvBN, SpikingAttention, SpikingProjection, branch, neurons
from vit2snn.spiking.branches import find, kinds, registry
from vit2snn.spiking.branches.registry import for_tokens, spellings
from vit2snn.storage import load
from vit2snn.zoo import AutoST, statistics

SIZE = BlockSize(channels=32, heads=4, hidden=48, grid=(3, 5), prefix=1)
ALL = [(place, kind) for place in ("attention", "mlp") for kind in kinds(place)]
FIELDS: dict[str, Any] = {"norm": "batchnorm", "readout": "mean", "neuron": "if"}


@pytest.fixture
def majority(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A kind of attention that only this file knows: where many tokens send a key, the channel of the value passes."""
    monkeypatch.setattr(registry, "_KINDS", {place: dict(known) for place, known in registry._KINDS.items()})

    @branch("attention", "majority")
    class MajorityAttention(SpikingAttention):
        def __init__(self, dim: int, num_heads: int, neuron: Any, **common: Any) -> None:
            super().__init__(dim, num_heads, neuron, **common)
            self.neuron = neuron(threshold=2.0)

        @classmethod
        def products(cls, size: BlockSize) -> dict[str, tuple[int, int, int]]:
            return {"neuron": (size.heads, size.channels // size.heads, 1)}

        def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            passed: Tensor = self.neuron((q * k).sum(-1, keepdim=True)) * v
            return passed

    yield "majority"


def test_a_new_kind_converts_and_comes_back_from_disk(majority: str, images: Tensor, tmp_path: Path) -> None:
    snn = to_spiking(make_vit(), make_recipe(attention={"0": majority, "1": "majority+tim"}, mlp="spiking", **FIELDS), images)
    assert [p.attention for p in snn.plan.blocks] == [majority, "majority+tim"]
    assert diagnose(snn, images)[-1].relative_error[-1] < 0.5  # re-fitted by ridge regression
    query = snn.network.get_parameter("blocks.0.attn.branch.query.project.conv.weight")
    assert snn.network.get_submodule("blocks.0.attn.branch.neuron").gain.unique().numel() > 1
    assert query.abs().sum() > 0
    assert snn.is_new("blocks.1.attn.branch.interaction.conv.weight")
    snn.save(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out")(images), snn(images))


def test_a_new_kind_is_listed_and_may_be_chosen(majority: str, vit: nn.Module, images: Tensor) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(attention="minority")
    assert "majority" in caught.value.hint and "majority+tim" in caught.value.hint
    recipe = make_recipe(attention="auto", **FIELDS)
    found = [c for c in candidates(vit, recipe, [images], count=8) if c.kind == majority]
    assert [c.block for c in found] == [0, 1]
    assert choose(recipe, found).structure.attention == {"0": majority, "1": majority}


def test_a_new_kind_is_in_the_zoo_and_can_be_searched_for(majority: str) -> None:
    space = Space("spikformer", (32,), ((1, 2),), (2,), (4,), (majority, "ssa"))
    drawn = space.draw(Random(0))
    model = create(arguments(drawn, space, TASKS["cifar10"]), TASKS["cifar10"])
    assert isinstance(model, AutoST)
    counted, measured = count(drawn, space, TASKS["cifar10"])[0], statistics(model, (32, 32))
    assert (counted.parameters, counted.layer_macs, counted.neurons) == (
        measured.parameters, measured.layer_macs, measured.neurons,
    )  # fmt: skip
    assert AutoST(32, (4, 2), (2, 2), attention=majority, depths=(2,)).eval()(torch.randn(2, 3, 32, 32)).shape == (2, 100)


def test_after_that_nobody_knows_it() -> None:
    assert "majority" not in kinds("attention")
    with pytest.raises(ModelError, match="there is no attention 'majority'") as caught:
        AutoST(32, (4,), (2,), attention="majority")
    assert "ssa" in caught.value.hint
    with pytest.raises(ModelError, match="there is no attention 'majority'"):
        Space("spikformer", (32,), ((1, 1),), (2,), (4,), ("majority",))


@pytest.mark.parametrize(("place", "kind"), ALL)
def test_counts_are_those_of_the_module(place: str, kind: str) -> None:
    size, options = BlockSize(32, 4, 48, (3, 5)), {"bias": True} if place == "attention" else {}
    with torch.device("meta"):
        module, x = find(place, kind).for_maps(size, LIF, **options).eval(), torch.zeros(1, 32, 3, 5)
    sent: list[int] = []
    for _, neuron in neurons(module):
        neuron.register_forward_hook(lambda m, i, output: sent.append(output.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    flops = counter.get_flop_counts()["Global"]
    products = sum(done for operation, done in flops.items() if "bmm" in str(operation))
    counted = find(place, kind).count(size)
    assert counted.parameters == sum(p.numel() for p in module.parameters())
    assert (counted.layer_macs, counted.product_macs) == ((sum(flops.values()) - products) // 2, products // 2)
    assert (counted.neurons, counted.leaks) == (sum(sent), len(sent))


@pytest.mark.parametrize(("place", "kind"), ALL)
def test_parts_are_all_parameters_and_inherit_maps_of_their_shape(place: str, kind: str) -> None:
    vit: Any = make_vit(embed_dim=32, num_heads=4, mlp_ratio=1.5)
    made = for_tokens(place, kind, SIZE, LIF)
    block = vit.blocks[0]
    maps = made.inherited(own_maps(block.attn if place == "attention" else block.mlp), 4)
    types = {
        "projection": SpikingProjection, "gate": SpikingProjection, "product": Balanced, "mask": Balanced, "output": ConvBN,
    }  # fmt: skip
    parts = made.parts()
    assert [part.role for part in parts].index("output") == len(parts) - 1
    for name, role in parts:
        part: Any = made.get_submodule(name)
        assert isinstance(part, types[role])
        if role in ("projection", "output"):
            conv = part.conv if role == "output" else part.project.conv
            assert conv.weight.shape[:2] == maps[name].weight.shape
            assert len(maps[name].bias) == len(conv.weight)
    owned = {name for name, _ in made.named_parameters()}
    assert all(name.split(".")[0] in {part.name for part in parts} for name in owned)


def test_a_kind_says_whether_tokens_see_each_other() -> None:
    torch.manual_seed(0)
    for kind in kinds("attention"):
        attention = find("attention", kind).for_maps(SIZE, LIF).eval()
        for module in attention.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 1.5)
                nn.init.constant_(module.weight, 4)
        x = torch.randint(0, 2, (64, 32, 1, 8)).float()
        other = torch.cat([x[..., :1], torch.zeros_like(x[..., 1:])], -1)
        with torch.no_grad():
            changed = not torch.equal(attention(x)[..., 0], attention(other)[..., 0])
        assert changed == find("attention", kind).mixes_tokens, kind


def test_interaction_mixes_tokens(vit: nn.Module) -> None:
    assert plan(vit, make_recipe(attention="qk-token+tim", mlp="spiking"), (3, 16, 16)).blocks
    assert spellings("mlp") == kinds("mlp")


def test_kinds_that_a_block_is_too_small_for_are_not_tried() -> None:
    recipe = make_recipe(attention="auto", mlp="spiking", **FIELDS)
    assert "qk-mixed" in tried(make_vit(), recipe, "attention")  # type: ignore[arg-type]
    assert "qk-mixed" not in tried(make_vit(num_heads=1), recipe, "attention")  # type: ignore[arg-type]
    assert tried(make_vit(), recipe, "mlp") == []  # type: ignore[arg-type]


def test_the_documentation_lists_the_kinds() -> None:
    text = (Path(__file__).parents[1] / "docs" / "spike_driven.md").read_text()
    rows = {
        place: next(row for row in text.splitlines() if row.startswith(f"| `structure.{place}`"))
        for place in ("attention", "mlp")
    }
    assert all(f"`{kind}`" in rows[place] for place, kind in ALL)
