"""Kinds of branches and of terms: what each says for itself, and that a new one is known everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, get_args, get_type_hints

import pytest
import torch
from conftest import make_recipe
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vit2snn.convert import Membrane, to_spiking
from vit2snn.convert.blocks import AUTO
from vit2snn.errors import ModelError, RecipeError
from vit2snn.search import TASKS, Space, arguments, count, create
from vit2snn.spiking import LIF, Balanced, BlockSize, SpikingAttention, TemporalInteraction, branch, neurons
from vit2snn.spiking.branches import find, kinds, registry
from vit2snn.spiking.substitutes import INTERACTION, MLPS, NORMS, Term, base, is_sum, term, terms
from vit2snn.storage import load
from vit2snn.zoo import AutoST, statistics

SIZE = BlockSize(channels=32, heads=4, hidden=48, grid=(3, 5), prefix=1)
ALL = [(place, kind) for place in ("attention", "mlp") for kind in kinds(place)]


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


def test_a_kind_of_the_zoo_is_none_of_recipes(majority: str) -> None:
    assert majority in kinds("attention")
    with pytest.raises(RecipeError, match="has the unknown kind 'majority'"):
        make_recipe(attention=majority)


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


def test_all_attention_but_that_of_tokens_masks_shows_tokens_to_each_other() -> None:
    mixing = set()
    for kind in kinds("attention"):
        attention = find("attention", kind).for_maps(SIZE, LIF).eval()
        for module in attention.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 1.5)
                nn.init.constant_(module.weight, 4)
        x = torch.randint(0, 2, (64, 32, 1, 8)).float()
        other = torch.cat([x[..., :1], torch.zeros_like(x[..., 1:])], -1)
        with torch.no_grad():
            if not torch.equal(attention(x)[..., 0], attention(other)[..., 0]):
                mixing.add(kind)
    assert mixing == set(kinds("attention")) - {"qk-token"}


@pytest.fixture
def loudest(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A term that only this file knows: the value passes where the query is positive, in the mean of its channels."""
    monkeypatch.setattr(base, "_TERMS", dict(base._TERMS))

    @term("loudest")
    class Loudest(Term):
        reads = ("query", "value")
        queries = ("rectify",)

        def __init__(self, size: BlockSize) -> None:
            super().__init__(size)
            self.gain = nn.Parameter(torch.ones(size.heads, 1, 1))
            self.rectify = nn.ReLU()

        def forward(self, normed: Tensor, read: Any) -> Tensor:
            passed: Tensor = self.gain * self.rectify(read["query"]).mean(-1, keepdim=True) * read["value"]
            return passed

    yield "loudest"


def test_a_new_term_is_known_to_recipes_and_converts_and_comes_back_from_disk(
    loudest: str, vit: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(attention="loud")
    assert loudest in caught.value.hint
    assert is_sum("loudest+conv+tim")
    kinds = {"0": "loudest+ssa", "1": "conv+loudest+tim"}
    snn = to_spiking(vit, make_recipe(attention=kinds, mlp="relu", norm="static", refit="ridge", timesteps=2), images)
    assert [plan.attention for plan in snn.plan.blocks] == list(kinds.values())
    rectify: Any = snn.network.get_submodule("blocks.1.attn.terms.loudest.rectify")
    assert isinstance(rectify, Balanced) and any(isinstance(m, TemporalInteraction) for m in rectify.interaction.modules())
    assert rectify.log_threshold.unique().numel() > 1  # balanced
    assert snn.is_new("blocks.0.attn.terms.loudest.gain") and not snn.is_new("blocks.0.attn.qkv.weight")
    snn.save(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out")(images), snn(images))


def test_after_that_there_is_no_such_term() -> None:
    assert "loudest" not in terms()
    with pytest.raises(RecipeError, match="has the unknown kind 'loudest'"):
        make_recipe(attention="loudest")


def test_the_documentation_lists_the_kinds() -> None:
    text = (Path(__file__).parents[1] / "docs" / "spike_driven.md").read_text(encoding="utf-8")
    table = text.partition("| term |")[2].partition("\n\n")[0].splitlines()[2:]
    listed = [name for row in table for name in re.findall("`([^`]+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(terms())
    assert [name for name in (*MLPS, *NORMS, f"+{INTERACTION}", AUTO) if f"`{name}`" not in text] == []
    neurons = next(row for row in text.splitlines() if row.startswith("| `spikes.neuron`"))
    assert [name for name in get_args(get_type_hints(Membrane)["neuron"]) if f"`{name}`" not in neurons] == []
