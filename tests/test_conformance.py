"""The zoo against tensors that the authors' own code made: logits of whole models, and the spikes of single modules."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors import safe_open
from skips import SHARED
from torch import Tensor, nn

from vit2snn.spiking import LIF, QKChannelAttention, SEWShortcut, simulate
from vit2snn.zoo import SpikingTransformer, from_official

pytestmark = pytest.mark.shared

LAYOUT_OF = {
    "qkformer_cifar": "qkformer_cifar",
    "spikformer_imagenet": "spikformer_imagenet",
    "tim_intended": "tim",
    "semm_cifar_step_routerfix": "semm_cifar",
}


class Reference:
    """One file: parameters, input, output and taps."""

    def __init__(self, name: str) -> None:
        with safe_open(SHARED / "conformance" / f"{name}.safetensors", "pt") as file:
            self.config: dict[str, Any] = json.loads(file.metadata()["config"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
        self.parameters = {key.removeprefix("param/"): value for key, value in tensors.items() if key.startswith("param/")}
        self.tensors = tensors

    def tap(self, module: str) -> tuple[Tensor, Tensor]:
        return self.tensors[f"block/{module}/input"], self.tensors[f"block/{module}/output"]


@pytest.mark.parametrize("name", LAYOUT_OF)
@torch.no_grad()
def test_logits_are_the_authors(name: str) -> None:
    reference = Reference(name)
    model = from_official(LAYOUT_OF[name], reference.config, reference.parameters)
    x, expected = reference.tensors["input"], reference.tensors["output"]
    assert expected.abs().max() > 1
    logits = model(x.transpose(0, 1) if x.ndim == 5 else x)
    assert (logits - expected).abs().max() <= 1e-4
    alone = [model(x[i : i + 1].transpose(0, 1) if x.ndim == 5 else x[i : i + 1]) for i in range(2)]
    assert (torch.cat(alone) - expected).abs().max() <= 1e-4


def run(module: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, T: int) -> Tensor:
    """A module of a model on a folded signal ``[T * B, ...]``."""
    return simulate(module, x.unflatten(0, (T, -1)), T).flatten(0, 1)


def spikes_of(shortcut: nn.Module) -> Callable[[Tensor], Tensor]:
    """The branch of a SEW shortcut with its neuron: what the authors call the module."""
    assert isinstance(shortcut, SEWShortcut)
    return lambda x: shortcut.neuron(shortcut.branch(x))


def check(model: SpikingTransformer, path: str, tap: tuple[Tensor, Tensor], fold: Callable[[Tensor], Tensor]) -> None:
    module = model.get_submodule(path)
    found = run(spikes_of(module) if isinstance(module, SEWShortcut) else module, model, fold(tap[0]), 4)
    assert torch.equal(found, fold(tap[1])), path
    assert found.any()


@torch.no_grad()
def test_modules_of_qkformer_send_the_authors_spikes() -> None:
    reference = Reference("qkformer_cifar")
    model = from_official("qkformer_cifar", reference.config, reference.parameters, batch_leak=True)
    modules = {
        "patch_embed1": "stages.0.embed",
        "stage1.0.tssa": "stages.0.blocks.0.attention",
        "stage1.0.mlp": "stages.0.blocks.0.mlp",
        "patch_embed2": "stages.1.embed",
        "stage3.0.ssa": "stages.2.blocks.0.attention",  # taken on a batch of two, so with the leak
    }
    for theirs, ours in modules.items():
        check(model, ours, reference.tap(theirs), lambda x: x.flatten(0, 1))
    clean = from_official("qkformer_cifar", reference.config, reference.parameters)
    x, leaked = reference.tap("stage3.0.ssa")
    found = run(spikes_of(clean.get_submodule("stages.2.blocks.0.attention")), clean, x.flatten(0, 1), 4)
    assert torch.equal(found.unflatten(0, (4, 2))[0, 0], leaked[0, 0])
    assert not torch.equal(found, leaked.flatten(0, 1))


@torch.no_grad()
def test_modules_of_spikformer_send_the_authors_spikes() -> None:
    reference = Reference("spikformer_imagenet")
    model = from_official("spikformer_imagenet", reference.config, reference.parameters)
    modules = {
        "patch_embed": "stages.0.embed",
        "block.0.attn": "stages.0.blocks.0.attention",
        "block.0.mlp": "stages.0.blocks.0.mlp",
    }
    for theirs, ours in modules.items():
        check(model, ours, reference.tap(theirs), lambda x: x.flatten(0, 1))


@torch.no_grad()
def test_experts_send_the_spikes_of_the_port() -> None:
    reference = Reference("semm_cifar_step_routerfix")
    model = from_official("semm_cifar", reference.config, reference.parameters)
    for theirs, ours in {"attn": "attention", "mlp": "mlp"}.items():
        tap = reference.tap(f"block.0.{theirs}")
        check(model, f"stages.0.blocks.0.{ours}", tap, lambda x: x.transpose(1, 2).unflatten(2, (8, 8)))


@torch.no_grad()
def test_temporal_interaction_sends_the_authors_spikes() -> None:
    reference = Reference("tim_intended")
    model = from_official("tim", reference.config, reference.parameters)
    block = "stages.0.blocks.0.attention"
    check(model, f"{block}.branch.interaction", reference.tap("block.0.attn.TIM"), lambda x: x.flatten(0, 1).transpose(2, 3))
    check(model, block, reference.tap("block.0.attn"), lambda x: x.flatten(0, 1).unflatten(2, (4, 4)))
    check(
        model,
        "stages.0.embed",
        reference.tap("patch_embed"),
        lambda x: x.flatten(0, 1) if x.ndim == 5 else x.flatten(0, 1).unflatten(2, (4, 4)),
    )


@torch.no_grad()
def test_channel_attention_sends_the_spikes_of_spikingjelly() -> None:
    reference = Reference("qkca_spikingjelly2")
    attention = QKChannelAttention(reference.config["dim"], reference.config["num_heads"], LIF, out_bias=False)
    parameters = {}
    for ours, theirs, half in (("query.project", "qk", 0), ("key.project", "qk", 1), ("out", "proj", None)):
        for place, name in (("0", "conv"), ("1", "bn")):
            for key, value in reference.parameters.items():
                if key.startswith(f"{theirs}_conv_bn.{place}."):
                    part = value if half is None or not value.ndim else value.chunk(2)[half]
                    shaped = part.unsqueeze(-1) if part.ndim == 3 else part
                    parameters[f"{ours}.{name}.{key.rpartition('.')[2]}"] = shaped
    attention.load_state_dict(parameters)
    module = nn.Sequential(attention, LIF()).eval()
    x, expected = (reference.tensors[key].unsqueeze(-1) for key in ("input", "output"))
    found = simulate(module, x, len(x))
    assert torch.equal(found, expected)
    assert found.any()
