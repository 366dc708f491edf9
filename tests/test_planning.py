from __future__ import annotations

import pytest
import timm
import torch
from conftest import make_vit
from torch import Tensor, nn

from vit2snn.convert import Recipe, plan
from vit2snn.convert.record import record
from vit2snn.errors import ModelError, NothingConvertedError, UnsupportedModuleError

SIZE = (3, 16, 16)


def test_operation_counts_equal_the_closed_form_of_a_vit() -> None:
    width, depth, patches, classes = 32, 2, 16, 7
    tokens = patches + 1
    block = tokens * width * (3 * width + width + 2 * 4 * width) + 2 * tokens**2 * width
    assert plan(make_vit(), Recipe(), SIZE).macs == patches * width * 3 * 16 + depth * block + width * classes


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_counted_whether_fused_or_not(vit: nn.Module, fused: bool) -> None:
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    products = [o for o in record(vit, SIZE) if o.kind == "product"]
    assert sum(o.macs for o in products) == 2 * 2 * 17 * 17 * 32
    assert {o.module for o in products} == {"blocks.0.attn", "blocks.1.attn"}


def test_recording_reads_no_weights_and_leaves_the_model_alone(vit: nn.Module) -> None:
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    vit.train()
    record(vit, SIZE)
    assert vit.training
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())


def test_every_module_has_its_action(vit: nn.Module) -> None:
    planned = plan(vit, Recipe(ignore=("head", "patch_embed.*")), SIZE)
    actions = {module.name: module.action for module in planned.modules}
    assert actions["head"] == actions["patch_embed.proj"] == "ignored"
    assert actions["blocks.0.attn"] == actions["blocks.1.mlp.fc2"] == "spiking"
    assert actions["norm"] == actions["blocks.0.mlp.act"] == "analog"
    assert planned.action("blocks.0") is None


@pytest.mark.parametrize(
    ("name", "arguments", "module"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1)}, r"layers\.0\.blocks\.0\.attn \(WindowAttention"),
        ("resnet18", {}, r"bn1 \(BatchNorm2d: batch_norm\)"),
        ("eva02_tiny_patch14_224", {"depth": 1}, r"blocks\.0\.attn \(EvaAttention"),
    ],
)  # fmt: skip
def test_other_families_are_refused_by_the_name_of_the_module(name: str, arguments: dict[str, object], module: str) -> None:
    model = timm.create_model(name, **arguments)
    with pytest.raises(UnsupportedModuleError, match=module) as error:
        plan(model, Recipe(), timm.data.resolve_model_data_config(model)["input_size"])
    assert "@vit2snn.converts(" in error.value.hint


def test_products_in_the_forward_of_an_unknown_module_are_refused() -> None:
    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.transpose(-2, -1)

    with pytest.raises(UnsupportedModuleError, match=r"1 \(Squared: matmul\)"):
        plan(nn.Sequential(nn.Linear(16, 4), Squared()), Recipe(), (2, 4, 16))


def test_a_conversion_of_nothing_is_an_error() -> None:
    with pytest.raises(NothingConvertedError, match="nothing in Sequential would be converted"):
        plan(nn.Sequential(nn.GELU()), Recipe(), (4,))
    with pytest.raises(NothingConvertedError, match="nothing in VisionTransformer"):
        plan(make_vit(), Recipe(ignore=("*",)), SIZE)


def test_a_shared_module_and_a_wrong_size_are_refused() -> None:
    shared = nn.Linear(4, 4)
    with pytest.raises(ModelError, match="'0' is used 2 times"):
        plan(nn.Sequential(shared, nn.GELU(), shared), Recipe(), (4,))
    with pytest.raises(ModelError, match=r"cannot be run on one image of size \(3, 20, 20\)"):
        plan(make_vit(), Recipe(), (3, 20, 20))


def test_a_spiking_network_is_not_converted_again() -> None:
    import timm

    import vit2snn.zoo  # noqa: F401  (registers the model)

    with pytest.raises(ModelError, match="Spikformer is a spiking network already"):
        plan(timm.create_model("spikformer_4_384_cifar10"), Recipe(), (3, 32, 32))
