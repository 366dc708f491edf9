from __future__ import annotations

import logging
from typing import Any

import pytest
import timm
import torch
from test_zoo import SMALL, small
from torch import Tensor

from vit2snn.errors import CheckpointError, ModelError
from vit2snn.zoo import LAYOUTS, VARIANTS, SpikingTransformer, from_official
from vit2snn.zoo.official import Fit, _defaults

# Layout, a small model of it, and the authors' configuration: what the weights do not tell.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qkformer_imagenet": ("qkformer_10_384", {}, {"num_heads": 4, "T": 4}),
    "qkformer_cifar": (
        "qkformer_4_384_cifar10",
        {"dims": (16, 32, 64), "depths": (1, 1, 2), "attention": ("qk-token", "qk-token", "ssa"), "num_heads": 8},
        {},
    ),
    "qkformer_dvs": ("qkformer_2_256_dvs128", {"num_heads": 16}, {}),
    "spikformer_imagenet": ("spikformer_8_384", {}, {"num_heads": [4, 4]}),
    "spikformer_cifar": ("spikformer_4_384_cifar10", {}, {"num_heads": 4}),
    "spikformer_dvs": ("spikformer_8_384", {"scale": 0.25, "in_chans": 2}, {"num_heads": 4}),
    "sdt": ("sdt_8_384", {"pools": "0111", "neuron": "plif"}, {"pooling_stat": "0111", "spike_mode": "plif"}),
    "spikingformer_imagenet": ("spikingformer_8_384", {}, {"num_heads": 4}),
    "spikingformer_cifar": ("spikingformer_4_384_cifar10", {"dim": 32, "depth": 1, "num_heads": 4}, {"num_heads": 4}),
    "semm_cifar": ("semm_spikformer_4_384_cifar10", {"qkv_bias": True}, {}),
    "tim": ("tim_2_256_cifar10dvs", {}, {"num_heads": 4, "step": 4, "img_size_h": 32, "img_size_w": 32, "TIM_alpha": 0.6}),
    "autost": ("autost_4_384_cifar100", {}, {"num_heads": [4, 8]}),
}


def model_of(layout: str) -> tuple[SpikingTransformer, Tensor]:
    name, arguments, _ = CASES[layout]
    SMALL.setdefault(name, {})
    return small(name, **arguments)


def checkpoint(layout: str, model: SpikingTransformer) -> dict[str, Tensor]:
    """The model's weights as the authors' code would have stored them."""
    name, arguments, _ = CASES[layout]
    everything = _defaults(VARIANTS[name]) | SMALL[name] | arguments
    stored = {}
    own = model.state_dict()
    for key, names in Fit(model, LAYOUTS[layout], everything, {}).tensors.items():
        parts = own[key].chunk(len(names)) if own[key].ndim else [own[key]] * len(names)
        for their_name, value in zip(names, parts, strict=True):
            if value.shape[2:] == (1, 1) and ("attention" in key or "mlp" in key):
                value = value.flatten(1).reshape(*value.shape[:2], *(1,) * (LAYOUTS[layout].dimensions["mlp" in key] - 2))
            stored[their_name] = value
    return stored


@pytest.mark.parametrize("layout", CASES)
@torch.no_grad()
def test_every_layout_finds_the_model_again(layout: str) -> None:
    model, x = model_of(layout)
    stored = checkpoint(layout, model)
    loaded = from_official(layout, CASES[layout][2], {f"module.{key}": value for key, value in stored.items()})
    assert not loaded.training
    assert torch.allclose(loaded.readout(x, timesteps=4)[-1], model(x), atol=1e-6)
    assert loaded.pretrained_cfg["architecture"] == LAYOUTS[layout].variant


def test_all_layouts_are_covered() -> None:
    assert set(CASES) == set(LAYOUTS)


@pytest.mark.slow
@pytest.mark.parametrize("layout", CASES)
def test_a_checkpoint_of_another_layout_names_three_keys_and_the_layout_that_fits(layout: str) -> None:
    model, _ = model_of(layout)
    stored = checkpoint(layout, model)
    for other in LAYOUTS:
        if other == layout:
            continue
        with pytest.raises(CheckpointError, match=f"does not fit the layout '{other}': ") as caught:
            from_official(other, {}, stored)
        problems = str(caught.value).split(": ", 1)[1].split("; ")
        assert len(problems) == 3
        assert all(problem.split()[0].removeprefix("our").strip() for problem in problems)
        assert layout in caught.value.hint, (other, caught.value.hint)


def test_unused_parameters_are_left_out_and_unknown_ones_are_not() -> None:
    model, x = model_of("spikformer_imagenet")
    stored = checkpoint("spikformer_imagenet", model)
    stored["block.0.norm1.weight"] = torch.ones(32)
    loaded = from_official("spikformer_imagenet", {"num_heads": 4}, stored)
    assert torch.equal(loaded(x), model(x))
    with pytest.raises(CheckpointError, match=r"block.0.attn.q2_conv.weight is not in this layout"):
        from_official("spikformer_imagenet", {}, stored | {"block.0.attn.q2_conv.weight": torch.ones(1)})
    del stored["block.1.attn.q_bn.running_var"]
    with pytest.raises(CheckpointError, match=r"'spikformer_imagenet': block.1.attn.q_bn.running_var is missing$") as caught:
        from_official("spikformer_imagenet", {}, stored)
    assert caught.value.hint == "no layout of vit2snn fits this checkpoint"
    with pytest.raises(CheckpointError, match="does not fit"):
        from_official("tim", {}, {})


def test_thresholds_that_braincog_keeps_are_kept_or_refused() -> None:
    model, x = model_of("tim")
    stored = checkpoint("tim", model)
    dead = {"in_lif": 1.0, "out_lif": 1.0}
    for i in range(2):
        stored |= {f"block.{i}.attn.TIM.{neuron}.threshold": torch.tensor(value) for neuron, value in dead.items()}
        stored |= {
            f"block.{i}.attn.res_lif.threshold": torch.tensor(0.7),
            f"block.{i}.attn.q_lif.act_fun.alpha": torch.tensor(4.0),
        }
    loaded: Any = from_official("tim", CASES["tim"][2], stored)
    interaction = loaded.stages[0].blocks[0].attention.branch.interaction
    assert (interaction.inner.threshold, interaction.outer.threshold) == (1.0, 1.0)
    seen: list[Tensor] = []
    interaction.register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        loaded(x)
    rates = seen[0].unflatten(0, (4, -1)).flatten(1).mean(1)
    assert rates[0] > 0
    assert not rates[1:].any()  # the released code is silent after the first timestep
    stored["block.0.attn.k_lif.threshold"] = torch.tensor(0.5)
    with pytest.raises(CheckpointError, match=r"block.0.attn.k_lif.threshold is 0.5, this layout has 1"):
        from_official("tim", CASES["tim"][2], stored)


def test_the_configuration_must_not_contradict_the_weights() -> None:
    stored = checkpoint("spikformer_cifar", model_of("spikformer_cifar")[0])
    with pytest.raises(CheckpointError, match=r"says embed_dims/embed_dim/dim=384, but 'patch_embed.rpe_conv.weight'"):
        from_official("spikformer_cifar", {"embed_dims": 384}, stored)
    with pytest.raises(CheckpointError, match="says num_classes=1000"):
        from_official("spikformer_cifar", {"num_classes": 1000}, stored)
    with pytest.raises(ModelError, match="5 heads do not divide a width of 32"):
        from_official("spikformer_cifar", {"num_heads": 5}, stored)


def test_entries_without_effect_are_told(caplog: pytest.LogCaptureFixture) -> None:
    stored = checkpoint("spikformer_cifar", model_of("spikformer_cifar")[0])
    with caplog.at_level(logging.WARNING):
        from_official("spikformer_cifar", {"num_heads": 4, "drop_rate": 0.1, "patch_size": 4, "sr_ratios": 1}, stored)
        assert not caplog.records
        from_official("spikformer_cifar", {"num_heads": 4, "pooling_stat": "1111"}, stored)
    assert "without effect: pooling_stat" in caplog.text


def test_the_leak_is_for_qkformer_and_layouts_have_names() -> None:
    model, x = model_of("qkformer_imagenet")
    stored = checkpoint("qkformer_imagenet", model)
    leaking = from_official("qkformer_imagenet", {"num_heads": 4}, stored, batch_leak=True)
    with torch.no_grad():
        assert torch.equal(leaking(x[:1]), model(x[:1]))
        assert (leaking(x) - model(x)).abs().max() > 1e-3
    with pytest.raises(ModelError, match="'sdt' has no batch leak"):
        from_official("sdt", {}, {}, batch_leak=True)
    with pytest.raises(ModelError, match="no layout 'vit'") as caught:
        from_official("vit", {}, {})
    assert "qkformer_imagenet" in caught.value.hint


def test_an_imported_model_is_an_ordinary_timm_model() -> None:
    model, _ = model_of("autost")
    loaded: Any = from_official("autost", {"num_heads": [4, 8]}, checkpoint("autost", model))
    again = timm.create_model(loaded.pretrained_cfg["architecture"], **SMALL["autost_4_384_cifar100"], num_classes=7)
    again.load_state_dict(loaded.state_dict())
