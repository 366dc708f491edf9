"""Hadamard rotation of what neurons see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_recipe
from torch import Tensor, nn

from vit2snn.convert import RECIPES, load_model, to_spiking
from vit2snn.convert.conversion import structure
from vit2snn.measure import evaluate
from vit2snn.measure.spending import dense
from vit2snn.spiking import Hadamard, RotatedLinear
from vit2snn.storage import load
from vit2snn.tracing import depth

SIZE = (3, 16, 16)
ROTATED = make_recipe(timesteps=2, levels=2, ratio=2.0, rotation=True)


@pytest.mark.parametrize(("channels", "block"), [(32, 32), (24, 8), (7, 1)])
def test_a_hadamard_matrix_is_its_own_inverse(channels: int, block: int) -> None:
    rotation, x = Hadamard(channels), torch.randn(2, 3, channels, dtype=torch.float64)
    torch.testing.assert_close(rotation(rotation(x)), x, rtol=0, atol=1e-6)
    signs = rotation.matrix * block**0.5
    assert rotation.additions == block.bit_length() - 1
    torch.testing.assert_close(signs.abs(), torch.ones(block, block))


def test_one_outlier_is_spread_over_its_block() -> None:
    x = torch.zeros(64)
    x[5] = 8.0
    assert Hadamard(64)(x).abs().max() == pytest.approx(1.0)


def test_the_function_is_kept(vit: nn.Module, images: Tensor) -> None:
    snn = structure(vit, make_recipe(levels=0, rotation=True), SIZE)
    assert isinstance(snn.network.blocks[0].mlp.fc1, RotatedLinear)
    assert not torch.allclose(snn.network.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)  # type: ignore[union-attr]
    torch.testing.assert_close(snn(images, 1)[0], vit(images), rtol=1e-5, atol=1e-5)


def test_additions_are_charged_and_no_operation_is_undriven() -> None:
    model = load_model("demo")
    size = (1, 28, 28)
    plain, rotated = (to_spiking(model, make_recipe(timesteps=1, rotation=on), torch.rand(8, *size)) for on in (False, True))
    assert depth(rotated.network, size) == depth(plain.network, size)
    image = torch.rand(1, *size)
    assert dense(rotated, image) == dense(plain, image)
    added = {"plain": 0.0, "rotated": 0.0}
    for name, snn in {"plain": plain, "rotated": rotated}.items():
        costs = evaluate(snn, [(torch.rand(2, *size), torch.tensor([0, 1]))]).costs
        added[name] = sum(sum(o.accumulates) for o in costs.operations if o.kind == "rotation")
        assert not any(sum(o.multiplies) for o in costs.operations if o.kind == "weighted")
    assert added["plain"] == 0
    dim, tokens, blocks = model.embed_dim, 50, len(model.blocks)  # type: ignore[arg-type]
    assert dim == 64
    # A value of 64 channels takes part in 6 additions and one of 256 in 8: qkv, proj, fc1; fc2; and the head.
    assert added["rotated"] == blocks * tokens * (3 * dim * 6 + 4 * dim * 8) + dim * 6


def test_an_artifact_keeps_rotated_weights(demo_sample: tuple[Tensor, Tensor, Tensor], tmp_path: Path) -> None:
    calibration, scored, _ = demo_sample
    snn = to_spiking(load_model("demo"), ROTATED, calibration[:16])
    snn.save(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")(scored[:4], 2), snn(scored[:4], 2))


@pytest.mark.slow
def test_ternary_spikes_profit(demo_sample: tuple[Tensor, Tensor, Tensor]) -> None:
    calibration, scored, labels = demo_sample
    errors = []
    for rotation in (False, True):
        recipe = RECIPES["ternary"].changed(timesteps=6, rotation=rotation)
        snn = to_spiking(load_model("demo"), recipe, calibration)
        errors.append(evaluate(snn, [(scored[:60], labels[:60])]).points[-1].relative_error)
    assert errors[1] < 0.9 * errors[0]
