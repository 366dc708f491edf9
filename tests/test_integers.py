"""Weights of integers: how they are chosen, what they leave, and that they stay integers on disk, in graphs and in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from conftest import brief, make_vit
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vit2snn
from vit2snn.cli import cli
from vit2snn.convert import Recipe, SpikingModel, load_model, to_spiking
from vit2snn.convert.rounding import COLUMNS, second_order
from vit2snn.errors import ArtifactError, RecipeError
from vit2snn.export import export
from vit2snn.finetune import Settings, train
from vit2snn.measure import evaluate
from vit2snn.spiking import integer_weights
from vit2snn.storage import open_network


def recipe(bits: int | None, name: str = "faithful", **fields: Any) -> Recipe:
    return brief(name).changed(weight_bits=bits, timesteps=2, **fields)


def converted(bits: int = 4, name: str = "faithful", model: nn.Module | None = None, **fields: Any) -> SpikingModel:
    ann = make_vit() if model is None else model
    dtype = next(ann.parameters()).dtype
    return to_spiking(ann, recipe(bits, name, **fields), torch.randn(32, 3, 16, 16, dtype=dtype))


def check_integers(snn: SpikingModel, bits: int) -> int:
    """All weights that are marked are integers; how many these are."""
    found = integer_weights(snn.network)
    for weight in found.values():
        values, most = weight.integers.integers(weight.parameter), 2 ** (bits - 1) - 1
        assert values.abs().max() <= most and values.any() == weight.parameter.any()
        assert torch.equal(weight.integers.weight(values, weight.parameter.dtype), weight.parameter)
    return len(found)


@given(seed=st.integers(0, 99), bits=st.integers(2, 5), size=st.integers(1, 6))
def test_errors_are_made_up_for(seed: int, bits: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 3, size, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 50, size, generator=generator, dtype=torch.float64).cumsum(2)  # its inputs are correlated
    squares, most = x.mT @ x / 50, 2 ** (bits - 1) - 1
    scale = weight.abs().amax(2, keepdim=True) / most
    found = second_order(weight, scale, squares, most)
    assert torch.allclose(found / scale, (found / scale).round()) and ((found / scale).abs().round() <= most).all()
    plain = (weight / scale).round() * scale
    error, other = (((weight - w) @ x.mT).square().sum() for w in (found, plain))
    assert error <= other * 1.25  # input by input is no optimum, and rarely worse than each by itself
    alone = torch.eye(size, dtype=torch.float64).expand(2, -1, -1)
    assert torch.allclose(second_order(weight, scale, alone, most), plain)


def test_errors_of_correlated_inputs_nearly_cancel() -> None:
    weight, inputs = torch.rand(1, 16, 64, dtype=torch.float64), torch.randn(1, 500, 4).double() @ torch.randn(4, 64).double()
    scale = torch.full((1, 16, 1), 0.2, dtype=torch.float64)
    found, plain = second_order(weight, scale, inputs.mT @ inputs / 500, 7), (weight / scale).round().clamp(-7, 7) * scale
    error, other = (float(((weight - w) @ inputs.mT).norm()) for w in (found, plain))
    assert error < 0.3 * other


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 5),
        nn.Conv2d(6, 4, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, 3, groups=6, padding="same"),
        nn.Conv2d(6, 4, (3, 2), dilation=(1, 2), padding="same"),
        nn.Conv2d(6, 4, 3, groups=2, dilation=2, padding="valid"),
    ],
)
def test_columns_are_what_rows_of_weights_meet(layer: Any) -> None:
    convolution = isinstance(layer, nn.Conv2d)
    x = torch.randn(3, 6, 9, 8) if convolution else torch.randn(3, 7, 6)
    spacing = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups") if convolution}
    (columns,) = COLUMNS["conv2d" if convolution else "linear"](x, layer.weight, **spacing)
    rows = layer.weight.view(len(columns), -1, columns.shape[-1])
    met = (columns @ rows.mT).transpose(1, 2).flatten(0, 1) + layer.bias[:, None]
    wanted = layer(x).transpose(0, 1) if convolution else layer(x).movedim(-1, 0)
    torch.testing.assert_close(met, wanted.flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["faithful", "qkformer", "experts", "neuromorphic", "ternary"])
def test_all_weights_become_integers_and_the_ann_stays(name: str) -> None:
    ann, x = make_vit(), torch.randn(4, 3, 16, 16)
    snn = converted(8, name, ann)
    weighted = [call for module in snn.plan.modules for call in module.calls if call.kind == "weighted"]
    assert check_integers(snn, 8) == len({call.weight for call in weighted}) > 5
    with torch.no_grad():
        assert torch.equal(snn.ann(x), ann(x))
        exact = snn.exact(x)
    assert snn.teacher is not None and (exact is None) == snn.recipe.spike_driven
    if name == "faithful":
        assert exact is not None
        torch.testing.assert_close(exact, ann(x), rtol=0.1, atol=0.1)
        assert not torch.equal(exact, ann(x))


SWIN = dict(img_size=32, patch_size=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2))


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
def test_weights_are_found_wherever_they_are_used(name: str) -> None:
    if name.startswith("swin"):
        ann = timm.create_model(name, num_classes=7, **SWIN).eval()
        snn = to_spiking(ann, recipe(8), torch.randn(16, 3, 32, 32))
    else:
        snn = converted(8, model=make_vit(name))
    check_integers(snn, 8)
    assert all(not call.weight or call.weight in integer_weights(snn.network) for m in snn.plan.modules for call in m.calls)


class Odd(nn.Module):
    """A layer that is called twice, weights of no layer, a convolution by channel, and a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.twice = nn.Linear(8, 8)
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.computed = nn.Parameter(torch.randn(8, 8))
        self.maps = nn.Parameter(torch.randn(2, 8, 4))
        self.line = nn.Conv1d(8, 8, 1, bias=False)
        self.head = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x)).flatten(2).mT
        x = self.twice(self.twice(x).relu()).relu() @ self.matrix
        x = nn.functional.linear(x, self.computed / self.computed.norm())
        x = torch.einsum("bnd,edo->bneo", x, self.maps).flatten(2)
        head: Tensor = self.head(self.line(x.mT).mean(2))
        return head


def test_modules_of_any_kind(tmp_path: Path) -> None:
    snn = converted(8, model=Odd())
    found = integer_weights(snn.network)
    assert check_integers(snn, 8) == 8  # one of them at two places
    assert not [name for name in found if "computed" in name]
    assert found["maps"].integers.scale.shape == (2, 1, 4)
    assert found["matrix"].integers.scale.shape == (1, 8) and found["line.weight"].integers.scale.shape == (8, 1, 1)
    x = torch.randn(4, 3, 16, 16)
    snn.save(tmp_path / "odd", builder="test_integers:Odd")
    with torch.no_grad():
        assert torch.equal(vit2snn.load(tmp_path / "odd", trust="test_integers:Odd")(x), snn(x))


def test_ignored_modules_keep_their_weights() -> None:
    ann = make_vit()
    snn = converted(4, model=ann, ignore=("head", "blocks.0.*"))
    assert torch.equal(snn.network.head.weight, ann.head.weight)
    assert torch.equal(snn.network.blocks[0].attn.qkv.weight, ann.blocks[0].attn.qkv.weight)
    assert not torch.equal(snn.network.blocks[1].attn.qkv.weight, ann.blocks[1].attn.qkv.weight)


@pytest.mark.slow
def test_few_bits_keep_most_and_more_bits_more(demo_sample: tuple[Tensor, Tensor, Tensor]) -> None:
    calibration, images, _ = demo_sample
    ann = load_model("demo")
    errors = []
    with torch.no_grad():
        for bits in (8, 4, 3):
            exact = to_spiking(ann, recipe(bits), calibration).exact(images)
            assert exact is not None
            errors.append(float((exact - ann(images)).norm() / ann(images).norm()))
    assert errors[0] < 0.02 < errors[1] < 0.2 and errors[1] < errors[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_integers_come_back_in_any_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    snn, x = converted(8, model=make_vit().to(dtype)), torch.randn(3, 3, 16, 16, dtype=dtype)
    check_integers(snn, 8)
    snn.save(tmp_path / "out")
    again = vit2snn.load(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again(x), snn(x))
    check_integers(again, 8)


def test_a_network_that_is_made_half_afterwards_keeps_its_integers(tmp_path: Path) -> None:
    snn = converted(8)
    before = {name: weight.integers.integers(weight.parameter) for name, weight in integer_weights(snn.network).items()}
    snn.to(torch.bfloat16).save(tmp_path / "out")
    for name, weight in integer_weights(vit2snn.load(tmp_path / "out").network).items():
        assert torch.equal(weight.integers.integers(weight.parameter), before[name])


def test_files_hold_integers_and_damage_is_told(tmp_path: Path) -> None:
    converted(4).save(tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    tensors, name = load_file(path), "blocks.0.attn.qkv.weight"
    assert tensors[name].dtype == torch.int8 and tensors[name].abs().max() == 7
    assert tensors["blocks.0.attn.qkv.weight_integers.scale"].shape == (96, 1)
    assert tensors["blocks.0.attn.qkv.bias"].is_floating_point()
    for wrong, said in ((tensors[name] * 2, "beyond 7"), (tensors[name].float(), "torch.int8")):
        save_file(tensors | {name: wrong}, path)
        with pytest.raises(ArtifactError, match=said) as error:
            vit2snn.load(tmp_path / "out")
        assert name in str(error.value)


def test_a_training_ends_in_integers() -> None:
    snn = converted(8)
    before = {name: weight.parameter.detach().clone() for name, weight in integer_weights(snn.network).items()}
    batches = [(torch.randn(8, 3, 16, 16), torch.arange(8) % 7)] * 4
    names = set(snn.state_dict())
    train(snn, batches, Settings(epochs=3, lr=1e-2, ema=0.5))
    assert set(snn.state_dict()) == names
    check_integers(snn, 8)
    after = integer_weights(snn.network)
    assert all(not torch.equal(after[name].parameter, before[name]) for name in before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch.export.load, in older releases
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_graphs_hold_integers(format: str, tmp_path: Path) -> None:
    if format == "onnx":
        onnx = pytest.importorskip("onnx")
        runtime = pytest.importorskip("onnxruntime")
    snn, x = converted(8), torch.randn(3, 3, 16, 16)
    export(snn, tmp_path / "out", format, timesteps=2)
    with torch.no_grad():
        wanted = snn(x, 2)
    if format == "onnx":
        path = tmp_path / "out" / "model.onnx"
        stored = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
        (given,) = runtime.InferenceSession(path).run(None, {"images": x.numpy()})
        given, count = torch.tensor(given), len(stored)
    else:
        program = torch.export.load(tmp_path / "out" / "model.pt2")
        given, count = program.module()(x), sum(value.dtype == torch.int8 for value in program.state_dict.values())
    assert count == len(integer_weights(snn.network))
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
    check_integers(snn, 8)  # what was exported is a copy


@pytest.mark.slow
def test_the_command_rounds_and_says_so(tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    out = tmp_path / "out"
    said("convert", "demo", "-o", out, "--weights", "int4", "--samples", 32, "--timesteps", 2)
    snn = open_network(out)
    assert isinstance(snn, SpikingModel) and snn.recipe.weight_bits == 4 and check_integers(snn, 4)
    assert "integers of 4 bits are the weights of 18 of 18 operations" in said("inspect", out)
    assert "4-bit integers" in (out / "README.md").read_text()
    said("evaluate", out, "--samples", 64)
    found = json.loads((out / "evaluation.json").read_text())
    assert found["substitute"]["top1"] is not None and found["ann"]["top1"] is not None
    for wrong in ("int1", "int9", "int", "8", "float", "int-4"):
        refused = CliRunner().invoke(cli, ["convert", "demo", "-o", str(tmp_path / "no"), "--weights", wrong])
        assert refused.exit_code == 2 and not (tmp_path / "no").exists()


def test_bits_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="weight_bits"):
        Recipe(weight_bits=9)


def test_energy_and_budgets_go_with_integers() -> None:
    snn = converted(8, max_energy=1.0)
    assert check_integers(snn, 8)
    batch = torch.randn(16, 3, 16, 16), torch.arange(16) % 7
    assert evaluate(snn, [batch]).points[-1].energy < 1.2
