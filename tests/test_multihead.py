"""torch's own multi-head attention, as in torchvision's ViT, is driven by spikes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from vit2snn.convert import Recipe, plan, to_spiking
from vit2snn.convert.multihead import OpenMultiheadAttention, with_open_attention
from vit2snn.errors import ModelError

TOKENS, WIDTH, HIDDEN = 17, 48, 96


def vit() -> Any:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 4, WIDTH, HIDDEN, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 8, "vdim": 12}, {"bias": False}])
@pytest.mark.parametrize("mask", [None, torch.ones(5, 5).triu(1).bool(), torch.randn(5, 5)])
def test_the_opened_form_computes_the_same(batch_first: bool, sizes: dict[str, Any], mask: Tensor | None) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, 4, batch_first=batch_first, **sizes).eval()
    opened = with_open_attention(module, Recipe())
    query, key, value = (
        torch.randn(3, 5, 16),
        torch.randn(3, 5, sizes.get("kdim", 16)),
        torch.randn(3, 5, sizes.get("vdim", 16)),
    )
    inputs = [query, key, value] if batch_first else [x.transpose(0, 1) for x in (query, key, value)]
    if not sizes:
        inputs = [inputs[0]] * 3
    assert type(opened) is OpenMultiheadAttention and type(module) is nn.MultiheadAttention
    expected = module(*inputs, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(opened(*inputs, attn_mask=mask)[0], expected, rtol=1e-5, atol=1e-5)


def test_torchvisions_vit_is_planned_and_converted() -> None:
    model, images = vit(), torch.randn(64, 3, 32, 32)
    macs = 16 * 192 * WIDTH + 2 * (4 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH + 2 * TOKENS * WIDTH * HIDDEN) + 5 * WIDTH
    assert plan(model, Recipe(), (3, 32, 32)).macs == macs
    snn = to_spiking(model, "faithful", images)
    unseen = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        errors = (snn(unseen) - model(unseen)).flatten(1).norm(dim=1) / model(unseen).norm()
    assert errors[-1] < 0.02 and errors[-1] < errors[0]
    assert type(model.encoder.layers[0].self_attention) is nn.MultiheadAttention


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x).mean(1))
        return logits


def test_torchs_encoder_layers_do_not_pass_the_neurons_by() -> None:
    torch.manual_seed(0)
    model, x = Encoder().eval().requires_grad_(False), torch.randn(32, 6, 16)
    snn = to_spiking(model, Recipe(timesteps=2), x)
    ran = []
    for name, module in snn.named_modules():
        if name.endswith(("linear1.neuron", "spiking_attention_1.query")):
            module.register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        snn.requires_grad_(False)(x[:2])
    assert len(ran) >= 2


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attention(x, x, x, key_padding_mask=x[..., 0] > 0)[0]
        return attended


def test_masks_for_each_image_are_refused() -> None:
    with pytest.raises(ModelError, match="with a mask for each image is not converted"):
        plan(nn.Sequential(nn.Linear(16, 16), Masked()), Recipe(), (4, 16))
