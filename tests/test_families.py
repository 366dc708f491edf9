"""Families of timm models other than plain ViTs, small; benchmarks/coverage.py runs all of them."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from vit2snn.convert import RECIPES, to_spiking
from vit2snn.measure import dispatched
from vit2snn.tracing.calls import ELEMENTWISE

FAMILIES = {
    "windows with relative bias": ("swin_tiny_patch4_window7_224", {"img_size": 56, "depths": (2, 1), "embed_dim": 48}, 56),
    "rotary embedding and SwiGLU": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}, 56),
    "gated positional attention": ("convit_tiny", {"img_size": 64, "depth": 3, "local_up_to_layer": 2}, 64),
    "pooled queries": ("mvitv2_tiny", {"img_size": 64}, 64),
    "linear attention": ("efficientvit_b0", {}, 64),
    "locally grouped attention": ("twins_svt_small", {"depths": (1, 1), "embed_dims": (64, 128)}, 64),
    "decomposed relative position": ("samvit_base_patch16_224", {"img_size": 64, "embed_dim": 96, "depth": 2}, 64),
    "cross-covariance": ("xcit_nano_12_p16_224", {"depth": 2, "img_size": 64}, 64),
    "class attention and talking heads": ("cait_xxs24_224", {"img_size": 64, "depth": 2}, 64),
    "mixing of tokens": ("mixer_s16_224", {"img_size": 64}, 64),
    "convolution": ("resnet10t", {}, 64),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments", "size"), FAMILIES.values(), ids=FAMILIES.keys())
@torch.no_grad()
def test_a_family_converts(name: str, arguments: dict[str, object], size: int) -> None:
    model, images = timm.create_model(name, num_classes=10, **arguments).eval(), torch.randn(8, 3, size, size)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5)
    expected = model(images)
    exact = to_spiking(model, "exact", images)
    assert relative(exact(images, 1)[0], expected) < 1e-4

    found = dispatched(exact, images[0])
    assert not [operation for operation in found if not operation.driven]
    planned = [call for module in exact.plan.modules for call in module.calls if call.function not in ELEMENTWISE]
    assert sum(o.macs for o in found if not o.elementwise) == sum(call.macs for call in planned)

    snn = to_spiking(model, RECIPES["faithful"].changed(timesteps=8, levels=8), images)
    logits = snn(images, chunk=1)
    errors = [relative(logits[t - 1], expected) for t in (1, 3, 8)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02

    snn.double()  # the logits of an image are its own, whatever lies along the first axis
    torch.testing.assert_close(snn(images.double(), 2)[:, :1], snn(images[:1].double(), 2, chunk=1))


def relative(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).norm() / expected.norm())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["windows with relative bias", "rotary embedding and SwiGLU", "locally grouped attention"])
@torch.no_grad()
def test_a_wavefront_of_a_family_leaves_less_error(family: str) -> None:
    name, arguments, size = FAMILIES[family]
    model, images = timm.create_model(name, num_classes=10, **arguments).eval(), torch.randn(8, 3, size, size)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5)
    expected, errors = model(images), []
    for recipe in ("ternary", "ternary-stepwise"):
        snn = to_spiking(model, RECIPES[recipe].changed(timesteps=4), images)
        errors.append(relative(snn(images)[-1], expected))
    assert errors[0] < errors[1] / 2 and errors[0] < 0.2


class MixingConstants(nn.Module):
    """Products over the images, as in timm's CSATv2, of what is the same for all: behind a norm of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.head = nn.LayerNorm(1), nn.Linear(1, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1).flatten(1)  # [B, 16]
        q, k, v = self.qkv(self.norm(x.unsqueeze(-1))).unbind(-1)
        return self.head(x + (q @ k.transpose(-1, -2)).softmax(-1) @ v)  # type: ignore[no-any-return]


@torch.no_grad()
def test_what_a_norm_makes_of_one_channel_depends_on_no_image() -> None:
    model, images = MixingConstants().eval(), torch.randn(16, 3, 4, 4)
    nn.init.normal_(model.norm.bias)
    for recipe, tolerance in (("exact", 1e-5), ("faithful", 0.05)):
        snn = to_spiking(model, recipe, images)
        assert [module.name for module in snn.plan.modules] == ["head"]
        assert relative(snn(images)[-1], model(images)) < tolerance
        torch.testing.assert_close(snn(images[:2])[:, :1], snn(images[:1]))
    assert [operation.module for operation in dispatched(snn, images[0])] == ["head"]
