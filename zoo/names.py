"""What the published code bases call the modules of their models.

Each function gives pairs: a module of ours, and the authors' that it takes its weights from. In theirs ``{}`` stands where the
kind of module is named: ``block.0.attn.q_{}`` is ``q_conv`` or ``q_linear``, ``q_bn`` and ``q_lif``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Arguments = dict[str, Any]
"""Of the constructor of a zoo model."""
Names = Iterator[tuple[str, str]]


def qkformer(embeds: list[list[str]], stem: int, last: str, mlp: str) -> Callable[[Arguments], Names]:
    """QKFormer: the convolutions of its first and of its later patch embeddings, how many come before the shortcut, the name of
    its full attention and that of its MLP's layers."""

    def names(arguments: Arguments) -> Names:
        for i, depth in enumerate(arguments["depths"]):
            yield from _speds(f"stages.{i}.embed", f"patch_embed{i + 1}", embeds[min(i, 1)], stem if i == 0 else 0)
            for j in range(depth):
                theirs = f"stage{i + 1}.{j}"
                kind = "tssa" if arguments["attention"][i] == "qk-token" else last
                yield from _attention(f"stages.{i}.blocks.{j}", f"{theirs}.{kind}", value=kind == last)
                yield from _mlp(f"stages.{i}.blocks.{j}", f"{theirs}.mlp.{mlp}")

    return names


def _speds(ours: str, theirs: str, convolutions: list[str], stem: int) -> Names:
    for i, name in enumerate(convolutions):
        place = f"stem.{i}" if i < stem else f"body.main.{i - stem}"
        yield f"{ours}.{place}", f"{theirs}.{name}_{{}}"
    yield f"{ours}.body.shortcut", f"{theirs}.proj_res_{{}}"


def _attention(ours: str, theirs: str, value: bool = True) -> Names:
    """Attention in a SEW shortcut: the neuron of the projection is the shortcut's."""
    yield from _attention_branch(f"{ours}.attention", theirs, value)
    yield f"{ours}.attention.neuron", f"{theirs}.proj_lif"


def _attention_branch(ours: str, theirs: str, value: bool = True, mask: str = "attn_lif") -> Names:
    for mine, name in (("query", "q"), ("key", "k"), ("value", "v"))[: 3 if value else 2]:
        yield f"{ours}.branch.{mine}", f"{theirs}.{name}_{{}}"
    yield f"{ours}.branch.neuron", f"{theirs}.{mask}"
    yield f"{ours}.branch.out", f"{theirs}.proj_{{}}"


def _mlp(ours: str, theirs: str) -> Names:
    """A perceptron in a SEW shortcut."""
    yield f"{ours}.mlp.branch.expand", f"{theirs}1_{{}}"
    yield f"{ours}.mlp.branch.reduce", f"{theirs}2_{{}}"
    yield f"{ours}.mlp.neuron", f"{theirs}2_lif"


def _membrane_mlp(ours: str, theirs: str) -> Names:
    """A perceptron in a membrane shortcut: each layer's neuron comes before it."""
    yield f"{ours}.mlp.neuron", f"{theirs}1_lif"
    yield f"{ours}.mlp.branch.expand.project", f"{theirs}1_{{}}"
    yield f"{ours}.mlp.branch.expand.neuron", f"{theirs}2_lif"
    yield f"{ours}.mlp.branch.reduce", f"{theirs}2_{{}}"


def _splitting(neuron: str | None = "rpe_lif") -> Names:
    """The patch embedding, with the name of the neuron in its position embedding."""
    for i in range(4):
        yield f"stages.0.embed.layers.{i}", f"patch_embed.proj_{{}}{i or ''}"
    yield "stages.0.embed.position.branch", "patch_embed.rpe_{}"
    if neuron:
        yield "stages.0.embed.position.neuron", f"patch_embed.{neuron}"


def spikformer(arguments: Arguments) -> Names:
    """Spikformer."""
    yield from _splitting()
    for i in range(arguments["depth"]):
        yield from _attention(f"stages.0.blocks.{i}", f"block.{i}.attn")
        yield from _mlp(f"stages.0.blocks.{i}", f"block.{i}.mlp.fc")


def tim(arguments: Arguments) -> Names:
    """TIM."""
    yield from spikformer(arguments)
    for i in range(arguments["depth"]):
        ours, theirs = f"stages.0.blocks.{i}.attention.branch.interaction", f"block.{i}.attn.TIM"
        yield f"{ours}.conv", f"{theirs}.interactor"
        yield f"{ours}.inner", f"{theirs}.in_lif"
        yield f"{ours}.outer", f"{theirs}.out_lif"


def semm(arguments: Arguments) -> Names:
    """The port of SEMM; several of theirs for one of ours are put one after another."""
    yield from _splitting()
    for i in range(arguments["depth"]):
        ours, theirs = f"stages.0.blocks.{i}", f"block.{i}.attn"
        branch = f"{ours}.attention.branch"
        for j in range(arguments["experts"]):
            yield f"{branch}.query", f"{theirs}.ff_list.{j}.unit_{{}}"
            yield f"{branch}.neuron", f"{theirs}.lif_list.{j}"
        yield f"{branch}.key", f"{theirs}.k_{{}}"
        yield f"{branch}.value", f"{theirs}.v_{{}}"
        yield f"{branch}.router.project.conv", f"{theirs}.router1"
        yield f"{branch}.router.project.bn", f"{theirs}.router2"
        yield f"{branch}.router.neuron", f"{theirs}.router3"
        yield f"{branch}.out", f"{theirs}.proj_{{}}"
        yield f"{ours}.attention.neuron", f"{theirs}.proj_lif"
        yield f"{ours}.mlp.branch.router", f"block.{i}.mlp.dw_{{}}"
        yield from _mlp(ours, f"block.{i}.mlp.fc")


def sdt(arguments: Arguments) -> Names:
    """Spike-driven Transformer."""
    yield from _splitting("proj_lif3")
    yield "head_neuron", "head_lif"
    for i in range(arguments["depth"]):
        ours, theirs = f"stages.0.blocks.{i}", f"block.{i}.mlp.fc"
        yield f"{ours}.attention.neuron", f"block.{i}.attn.shortcut_lif"
        yield from _attention_branch(f"{ours}.attention", f"block.{i}.attn", mask="talking_heads_lif")
        if arguments["mlp_ratio"] == 1:
            for j in range(2):
                yield f"{ours}.mlp.{j}.neuron", f"{theirs}{j + 1}_lif"
                yield f"{ours}.mlp.{j}.branch", f"{theirs}{j + 1}_{{}}"
        else:
            yield from _membrane_mlp(ours, theirs)


def spikingformer(convolutions: str) -> Callable[[Arguments], Names]:
    """Spikingformer, whose convolutions are numbered in two ways."""

    def names(arguments: Arguments) -> Names:
        for i in range(5):
            number = i if i or "proj" not in convolutions else ""
            ours = f"stages.0.embed.layers.{i}.project" if i < 4 else "stages.0.embed.position"
            yield ours, f"patch_embed.{convolutions.format(number)}_{{}}"
        for i in range(arguments["depth"]):
            ours, theirs = f"stages.0.blocks.{i}", f"block.{i}.attn"
            yield f"{ours}.attention.neuron", f"{theirs}.proj_lif"
            yield from _attention_branch(f"{ours}.attention", theirs)
            yield from _membrane_mlp(ours, f"block.{i}.mlp.mlp")

    return names


def autost(arguments: Arguments) -> Names:
    """AutoST."""
    yield from _splitting(neuron=None)
    for i in range(len(arguments["num_heads"])):
        ours, theirs = f"stages.0.blocks.{i}", f"block.{i}.attn"
        yield f"{ours}.attention.neuron", f"{theirs}.lif"
        yield from _attention_branch(f"{ours}.attention", theirs)
        yield from _membrane_mlp(ours, f"block.{i}.mlp.fc")
