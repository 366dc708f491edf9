from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from conftest import enliven
from torch import Tensor, nn

from vit2snn.errors import DataError, ModelError
from vit2snn.spiking import LIF, channels_last, neurons
from vit2snn.zoo import VARIANTS, QKFormer, SpikingTransformer, TIMSpikformer, statistics

# FACTS: millions of parameters, from running the authors' classes. Theirs hold parameters that nothing reads: two LayerNorms in
# each block of Spikformer and TIM, a position embedding and a norm in Spikformer's event model, a talking-heads convolution in
# Spike-driven Transformer. "dead" is their number.
PARAMETERS = {
    "qkformer_10_384": (16.474, 0),
    "qkformer_10_512": (29.079, 0),
    "qkformer_10_768": (64.963, 0),
    "qkformer_4_384_cifar10": (6.706, 0),
    "qkformer_4_384_cifar100": (6.741, 0),
    "qkformer_2_256_cifar10dvs": (1.504, 0),
    "qkformer_2_256_dvs128": (1.999, 0),
    "spikformer_8_384": (16.828, 8 * 4 * 384),
    "spikformer_6_512": (23.386, 6 * 4 * 512),
    "spikformer_8_512": (29.706, 8 * 4 * 512),
    "spikformer_10_512": (36.026, 10 * 4 * 512),
    "spikformer_8_768": (66.363, 8 * 4 * 768),
    "spikformer_4_256_cifar10": (4.159, 4 * 4 * 256),
    "spikformer_2_384_cifar10": (5.768, 2 * 4 * 384),
    "spikformer_4_384_cifar10": (9.331, 4 * 4 * 384),
    "spikformer_2_256_cifar10dvs": (2.586, 2 * 4 * 256 + 64 * 256 + 2 * 256),
    "sdt_8_384": (16.816, 8 * 8 * 8),
    "sdt_6_512": (23.374, 6 * 8 * 8),
    "sdt_8_512": (29.690, 8 * 8 * 8),
    "sdt_10_512": (36.006, 10 * 8 * 8),
    "sdt_8_768": (66.339, 8 * 8 * 8),
    "sdt_2_512_cifar10": (10.23, 2 * 8 * 8),
    "spikingformer_8_384": (16.81, 0),
    "spikingformer_8_512": (29.68, 0),
    "spikingformer_8_768": (66.34, 0),
    "semm_spikformer_4_384_cifar10": (7.74, 0),
    "tim_2_256_cifar10dvs": (2.571, 2 * 4 * 256),
}

SMALL: dict[str, dict[str, Any]] = {
    "qkformer_10_384": {"dims": (16, 32, 64), "depths": (1, 1, 1), "num_heads": 4},
    "qkformer_4_384_cifar10": {"dims": (16, 32), "depths": (1, 1), "attention": ("qk-mixed", "qk-channel"), "num_heads": 4},
    "qkformer_2_256_dvs128": {"dims": (16, 32), "num_heads": 4, "timesteps": 4},
    "spikformer_8_384": {"dim": 32, "depth": 2, "num_heads": 4},
    "spikformer_4_384_cifar10": {"dim": 32, "depth": 1, "num_heads": 4},
    "sdt_8_384": {"dim": 32, "depth": 2},
    "sdt_2_256_dvs128": {"dim": 32, "depth": 1, "timesteps": 4},
    "spikingformer_8_384": {"dim": 32, "depth": 1, "num_heads": 4},
    "semm_spikformer_4_384_cifar10": {"dim": 32, "depth": 1, "expert_dim": 8},
    "semm_sdt_8_512": {"dim": 32, "depth": 1, "expert_dim": 8},
    "semm_spikingformer_4_384_cifar10": {"dim": 32, "depth": 1, "expert_dim": 8},
    "tim_2_256_cifar10dvs": {"dim": 32, "num_heads": 4, "timesteps": 4, "img_size": 32},
    "autost_4_384_cifar100": {"dim": 32, "num_heads": (4, 8), "mlp_ratios": (2, 3)},
}


def small(name: str, **more: Any) -> tuple[SpikingTransformer, Tensor]:
    """A small model of an architecture, in which all neurons fire, and four inputs."""
    model: Any = timm.create_model(name, **{**SMALL[name], "num_classes": 7, **more})
    x = torch.rand(4, model.in_chans, 32, 32)
    if model.in_chans == 2:
        x = torch.randint(0, 3, (model.timesteps, *x.shape)).float()
    return enliven(model, x), x  # type: ignore[return-value]


def image(x: Tensor, i: int) -> Tensor:
    return x[:, i : i + 1] if x.ndim == 5 else x[i : i + 1]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_authors_models(name: str) -> None:
    published, dead = PARAMETERS[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    count = sum(parameter.numel() for parameter in model.parameters()) + dead
    digits = len(str(published).split(".")[1])
    # The papers cut off and the rest is rounded.
    assert published in (round(count / 1e6, digits), int(count / 10 ** (6 - digits)) / 10**digits)


def test_macs_are_those_of_the_authors_models() -> None:
    for name, giga in {"qkformer_10_384": 5.83, "qkformer_4_384_cifar10": 1.51, "spikformer_4_384_cifar10": 0.92}.items():
        with torch.device("meta"):
            model: Any = timm.create_model(name)
        found = statistics(model, model.pretrained_cfg["input_size"][1:])
        assert round(found.layer_macs / 1e9, 2) == giga
        assert 0 < found.product_macs < found.layer_macs


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_logits_depend_neither_on_batch_mates_nor_on_later_timesteps_nor_on_chunks(name: str) -> None:
    model, x = small(name)
    whole = model.readout(x)
    assert whole.shape == (model.timesteps, 4, 7)
    assert whole.std(1).max() > 1e-3
    assert (whole[0] - whole[-1]).abs().max() > 1e-4
    alone = torch.cat([model.readout(image(x, i)) for i in range(4)], 1)
    assert torch.allclose(whole, alone, atol=1e-5)
    begun = model.readout(x[:2] if x.ndim == 5 else x, timesteps=2)
    assert torch.allclose(begun, whole[:2], atol=1e-5)
    assert torch.allclose(model.readout(x, chunk=1), whole, atol=1e-5)
    assert torch.allclose(model.readout(x, chunk=3), whole, atol=1e-5)
    assert torch.equal(model(x), whole[-1])


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_neurons_fire_and_streams_are_what_the_shortcut_says(name: str) -> None:
    model, x = small(name)
    rates: dict[str, float] = {}
    for neuron_name, neuron in neurons(model):
        neuron.register_forward_hook(lambda m, i, out, n=neuron_name: rates.update({n: float(out.mean())}))
    features = model.forward_features(x)
    silent = [name for name, rate in rates.items() if rate == 0]
    assert not silent
    integers = torch.equal(features, features.round())
    assert integers == name.startswith(("qkformer", "spikformer", "semm_spikformer", "tim"))


@pytest.mark.parametrize("name", SMALL)
def test_timm_users_find_what_they_expect(name: str) -> None:
    model, x = small(name)
    model = copy.deepcopy(model)
    with torch.no_grad():
        features = model.forward_features(x)
        assert torch.allclose(model.forward_head(features), model(x), atol=1e-5)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (4, model.num_features)
        model.reset_classifier(3)
        assert model(x).shape == (4, 3)
        assert isinstance(model.get_classifier(), nn.Linear)
        model.reset_classifier(0)
        assert torch.allclose(model(x), pooled, atol=1e-5)
    cfg: Any = model.pretrained_cfg
    assert cfg["classifier"] == "head"
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == model.in_chans
    assert model.pretrained_cfg["input_size"][0] == model.in_chans


@pytest.mark.parametrize("name", ["qkformer_10_384", "spikformer_8_384", "sdt_8_384", "qkformer_2_256_dvs128"])
@torch.no_grad()
def test_features_only_gives_maps_averaged_over_time(name: str) -> None:
    arguments = {**SMALL[name], "num_classes": 7}
    extractor: Any = timm.create_model(name, features_only=True, **arguments).eval()
    x = torch.rand(2, extractor.in_chans, 64, 64)
    maps = extractor(x)
    assert [m.shape[1] for m in maps] == extractor.feature_info.channels()
    assert [64 // m.shape[-1] for m in maps] == extractor.feature_info.reduction()
    last: Any = timm.create_model(name, features_only=True, out_indices=[0], **arguments).eval()
    missing = last.load_state_dict(extractor.state_dict(), strict=False)
    assert not missing.missing_keys
    assert len(last.state_dict()) < len(extractor.state_dict())
    assert torch.equal(last(x)[0], maps[0])
    model: Any = timm.create_model(name, **arguments).eval()
    final, intermediates = model.forward_intermediates(x, indices=1)
    assert torch.equal(final, intermediates[0])
    assert torch.allclose(final, model.forward_features(x).mean(0))
    assert len(model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)) == 1
    with pytest.raises(ValueError, match="NCHW, got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_every_variant_is_registered_with_its_configuration_and_sources() -> None:
    assert set(VARIANTS) <= set(timm.list_models())
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            model: Any = timm.create_model(name)
        assert model.num_classes == variant.cfg["num_classes"], name
        assert model.in_chans == variant.cfg["input_size"][0], name
        assert not any(size % model.stride for size in variant.cfg["input_size"][1:]), name
        assert all(entry.source and 0 < entry.top1 < 100 for entry in variant.published), name
    assert timm.create_model("spikformer_4_256_cifar10", in_chans=1, num_classes=4).in_chans == 1
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("spikformer_4_256_cifar10", pretrained=True)


def test_the_batch_leak_is_off_unless_asked_for() -> None:
    model, x = small("qkformer_10_384")
    leaking, _ = small("qkformer_10_384", batch_leak=True)
    leaking.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(leaking(x[:1]), model(x[:1]))
        assert (leaking(x) - model(x)).abs().max() > 1e-3
        assert torch.allclose(leaking.readout(x, chunk=2), leaking.readout(x), atol=1e-5)


def test_parameters_of_the_published_ablation_with_channel_attention_last() -> None:
    with torch.device("meta"):
        model: Any = timm.create_model("qkformer_4_384_cifar100", attention=("qk-token", "qk-token", "qk-channel"))
    assert int(sum(p.numel() for p in model.parameters()) / 1e4) / 100 == 6.44


def test_inputs_that_do_not_fit_are_refused_with_the_way_out() -> None:
    model, x = small("qkformer_10_384")
    with pytest.raises(DataError, match=r"takes 3 channels, got 1 in an input of shape \(2, 1, 32, 32\)") as caught:
        model(torch.rand(2, 1, 32, 32))
    assert caught.value.hint == "create the model with in_chans=1"
    with pytest.raises(DataError, match="33x32 are not divisible by the model's stride of 16"):
        model(torch.rand(1, 3, 33, 32))
    with pytest.raises(DataError, match="runs 4 timesteps, got frames for 2") as caught:
        model(torch.rand(2, 4, 3, 32, 32))
    assert "time first" in caught.value.hint
    with pytest.raises(DataError, match=r"images \[B, 3, H, W\] or frames .* got shape \(3, 32, 32\)"):
        model(x[0])
    open_ended: Any = timm.create_model("qkformer_2_256_dvs128", **{**SMALL["qkformer_2_256_dvs128"], "timesteps": 0}).eval()
    assert open_ended(torch.rand(3, 1, 2, 32, 32)).shape == (1, 11)
    with pytest.raises(DataError, match="takes its timesteps from frames"):
        open_ended(torch.rand(1, 2, 32, 32))


def test_arguments_that_make_no_model_are_refused() -> None:
    with pytest.raises(ModelError, match="7 heads do not divide a width of 16"):
        timm.create_model("qkformer_10_384", **{**SMALL["qkformer_10_384"], "num_heads": 7})
    with pytest.raises(ModelError, match="must name the same stages"):
        QKFormer(dims=(16, 32), depths=(1,), attention=("ssa", "ssa"))
    with pytest.raises(ModelError, match="no attention 'softmax'"):
        QKFormer(dims=(16,), depths=(1,), attention=("softmax",), num_heads=4)
    with pytest.raises(ModelError, match="no stem 'tiny'"):
        QKFormer(stem="tiny")
    with pytest.raises(ModelError, match="no neuron 'relu'"):
        timm.create_model("spikformer_8_384", neuron="relu")
    with pytest.raises(ModelError, match="there is no frame 'vit'"):
        timm.create_model("semm_sdt_8_512", frame="vit")
    with pytest.raises(ModelError, match="frames of 40x40 are not divisible"):
        TIMSpikformer(img_size=40)
    with pytest.raises(ModelError, match="must name the same blocks"):
        timm.create_model("autost_4_384_cifar100", num_heads=(4,), mlp_ratios=(2, 3))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_channels_last_changes_no_logits_and_is_undone(name: str) -> None:
    model, x = small(name)
    logits = model.double()(x.double())
    with channels_last(model):
        assert not all(weight.is_contiguous() for weight in model.parameters())
        torch.testing.assert_close(model(x.double()), logits)
    assert all(weight.is_contiguous() for weight in model.parameters())


@pytest.mark.parametrize("neuron", ["if", "plif", "integer-lif", LIF])
def test_other_neurons_can_be_put_in(neuron: Any) -> None:
    model, x = small("spikformer_4_384_cifar10", neuron=neuron)
    loss = model(x).square().mean()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert model.get_submodule(model.first_conv).weight.grad.abs().sum() > 0
