from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from conftest import make_vit
from torch import Tensor, nn

from vit2snn.convert import Recipe, plan
from vit2snn.errors import ModelError, NothingConvertedError, UnsupportedModuleError
from vit2snn.spiking import IF, Balanced
from vit2snn.tracing import record

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


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, add_zero_attn=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1).mul_(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.lstm(x)[0]
        return output


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (Opaque(), "MultiheadAttention", r"1\.attention \(MultiheadAttention: multi_head_attention_forward\)"),
        (InPlace(), "InPlace", r"1 \(InPlace: mul_\)"),
        (Recurrent(), "LSTM", r"1\.lstm \(LSTM: lstm\)"),
    ],
)
def test_products_that_cannot_be_reached_are_refused_by_name(module: nn.Module, kind: str, message: str) -> None:
    with pytest.raises(UnsupportedModuleError, match=message) as error:
        plan(nn.Sequential(nn.Linear(16, 16), module), Recipe(), (4, 16))
    assert f"@vit2snn.converts({kind})" in error.value.hint


class TokensFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return (x @ x.transpose(1, 2)).transpose(0, 1)


def test_operands_without_the_images_along_the_first_axis_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"matmul in module '1' reads has shape \(4, 1, 16\) for one image and \(4, 2, 16\) for 2"
    ):
        plan(nn.Sequential(nn.Linear(16, 16), TokensFirst()), Recipe(), (4, 16))


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5), ("...c, ...d -> ...cd", [(2, 3, 4), (2, 1, 5)], 2 * 3 * 4 * 5)],
)  # fmt: skip
def test_operations_of_an_einsum(equation: str, shapes: list[tuple[int, ...]], macs: int) -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum(equation, *(x.new_ones(len(x) * shape[0], *shape[1:]) + x.sum() for shape in shapes))

    (operation,) = record(Product(), (3, 4, 4))
    assert operation.macs == macs


class Fires(nn.Module):
    """Two neurons fire, and a layer reads what is made of their spikes, and of the signal."""

    def __init__(self, made: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.made = Balanced(IF()), Balanced(IF()), made
        self.layer, self.gain = nn.Linear(8, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.made(self.one(x), self.other(x), x, self.gain))
        return out


MADE: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "spikes": (lambda s, z, x, gain: s, True),
    "a view": (lambda s, z, x, gain: s.transpose(1, 2).reshape(s.shape).contiguous(), True),
    "a sum": (lambda s, z, x, gain: s.sum(1), True),
    "a mean": (lambda s, z, x, gain: s.mean(1, keepdim=True), True),
    "a common factor": (lambda s, z, x, gain: s * 0.5, True),
    "a product of spikes": (lambda s, z, x, gain: s * z, True),
    "products of matrices": (lambda s, z, x, gain: s @ z.transpose(1, 2) @ s, True),
    "a product with what gets neurons": (lambda s, z, x, gain: s * x, True),
    "a factor for each channel": (lambda s, z, x, gain: s * gain, False),
    "a function": (lambda s, z, x, gain: torch.tanh(s), False),
    "spikes of two heights": (lambda s, z, x, gain: torch.cat([s, z], 1), False),
    "spikes beside the signal": (lambda s, z, x, gain: torch.cat([s, x], 1), False),
    "a sum with the signal": (lambda s, z, x, gain: s + x, False),
    "the signal": (lambda s, z, x, gain: x, False),
}


@pytest.mark.parametrize(("made", "spikes"), MADE.values(), ids=MADE.keys())
def test_what_is_made_of_spikes_is_counts_of_spikes_or_needs_neurons_again(made: Callable[..., Tensor], spikes: bool) -> None:
    (layer,) = [operation for operation in record(Fires(made), (5, 8)) if operation.module == "layer"]
    assert (layer.spikes, layer.driven) == (((0,), ()) if spikes else ((), (0,)))


def test_a_conversion_of_nothing_is_an_error() -> None:
    with pytest.raises(NothingConvertedError, match="nothing in Sequential would be converted"):
        plan(nn.Sequential(nn.GELU()), Recipe(), (4,))
    with pytest.raises(NothingConvertedError, match="nothing in VisionTransformer"):
        plan(make_vit(), Recipe(ignore=("*",)), SIZE)


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(ModelError, match=r"cannot be run on an image of size \(3, 20, 20\)"):
        plan(make_vit(), Recipe(), (3, 20, 20))


def test_a_spiking_network_is_not_converted_again() -> None:
    import vit2snn.zoo  # noqa: F401  (registers the model)

    with pytest.raises(ModelError, match="Spikformer is a spiking network already"):
        plan(timm.create_model("spikformer_4_384_cifar10"), Recipe(), (3, 32, 32))


class Choosy(nn.Module):
    """Looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.transpose(1, 2) if bool(x.sum() > 0) else x


def test_what_depends_on_values_is_refused_by_the_name_of_the_module() -> None:
    with pytest.raises(ModelError, match=r"\(in module '1', Choosy\)") as error:
        plan(nn.Sequential(nn.Linear(4, 4), Choosy()), Recipe(), (4, 4))
    assert "depends on values" in error.value.hint


def test_models_of_several_inputs_or_outputs_are_refused() -> None:
    class TwoInputs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y

    with pytest.raises(ModelError, match="missing 1 required positional argument: 'y'") as error:
        plan(TwoInputs(), Recipe(), (4, 4))
    assert "several inputs" in error.value.hint
    with pytest.raises(ModelError, match="gives a list, and one tensor was expected"):
        plan(timm.create_model("resnet10t", features_only=True), Recipe(), (3, 32, 32))
