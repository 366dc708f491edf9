"""Exported networks: graphs of ordinary operators that give what the network gives, at every timestep, for any batch."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from conftest import brief, enliven, make_vit
from torch import Tensor, nn

from vit2snn.cli import cli
from vit2snn.convert import RECIPES, to_spiking
from vit2snn.errors import ArtifactError, ExportError, OutputExistsError
from vit2snn.export import export
from vit2snn.export.graph import RunGraph, StepGraph
from vit2snn.export.program import write_onnx
from vit2snn.spiking import ShiftGELU, ShiftLayerNorm, ShiftSoftmax, SpikingNetwork, TemporalInteraction, floats
from vit2snn.storage import save

T = 4
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def converted(recipe: str, depth: int = 1) -> Any:
    snn = to_spiking(make_vit(depth=depth), brief(recipe).changed(timesteps=3), torch.randn(32, 3, 16, 16))
    return snn.eval()


def zoo(name: str, neuron: str = "lif", channels: int = 2) -> Any:
    size = {"input_size": (channels, 16, 16)}
    small: dict[str, Any] = dict(num_heads=2, timesteps=3, neuron=neuron)
    small |= dict(dims=(16, 32), depths=(1, 1)) if name.startswith("qkformer") else dict(dim=32, depth=1)
    model: nn.Module = timm.create_model(name, in_chans=channels, pretrained_cfg_overlay=size, **small)
    return enliven(model, torch.rand(3, 2, channels, 16, 16) * 2)


@torch.no_grad()
def readout(network: SpikingNetwork, x: Tensor) -> Tensor:
    return network.readout(x, T)


@torch.no_grad()
def stepped(graph: StepGraph, frames: Tensor) -> Tensor:
    """The readouts of a host that counts; its states are at first anything."""
    states = [torch.full((frames.shape[1], *state.shape), 7.0) for state in graph.states]
    found = []
    for t, x in enumerate(frames):
        logits, states = graph(x, torch.tensor(t), states)
        found.append(logits)
    return torch.stack(found)


def of_runtime(path: Path, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {name: np.asarray(value) for name, value in inputs.items()})
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_graphs_give_the_networks_readout_at_every_timestep(recipe: str) -> None:
    snn, x = converted(recipe), torch.randn(2, 3, 16, 16)
    expected = readout(snn, x)
    if RECIPES[recipe].lag:
        with pytest.raises(ExportError, match="begin one after another"):
            RunGraph(snn, T)
        return
    assert torch.allclose(RunGraph(snn, T)(x), expected, **CLOSE)
    if snn.synchronous:
        with pytest.raises(ExportError, match="wait for each other"):
            StepGraph(snn, x[:1])
    else:
        assert torch.allclose(stepped(StepGraph(snn, x[:1]), x.expand(T, *x.shape)), expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "neuron"),
    [("tim_2_256_cifar10dvs", "lif"), ("qkformer_2_256_cifar10dvs", "plif"), ("spikformer_2_256_cifar10dvs", "integer-lif"),
     ("spikformer_2_256_cifar10dvs", "ternary"), ("spikformer_2_256_cifar10dvs", "if")],
)  # fmt: skip
def test_graphs_of_zoo_models_take_frames(name: str, neuron: str) -> None:
    model, frames = zoo(name, neuron), torch.rand(T, 2, 2, 16, 16) * 2
    expected = readout(model, frames)
    assert expected.std() > 1e-3
    assert torch.allclose(RunGraph(model, T)(frames), expected, **CLOSE)
    graph = StepGraph(model, frames[0, :1])
    assert torch.allclose(stepped(graph, frames), expected, **CLOSE)
    interactions = sum(isinstance(module, TemporalInteraction) for module in model.modules())
    assert sum(state.name.endswith(".2") for state in graph.states) == interactions


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["faithful", "qkformer-membrane"])
def test_onnx_of_one_timestep_gives_the_networks_readout_for_any_batch(recipe: str, tmp_path: Path) -> None:
    snn, x = converted(recipe), torch.randn(3, 3, 16, 16)
    document = export(snn, tmp_path / "out", step=True)
    assert document == json.loads((tmp_path / "out" / "export.json").read_text())
    names = [entry["name"] for entry in document["inputs"]]
    assert names[:2] == ["images", "timestep"]
    assert document["inputs"][0]["shape"] == ["batch", 3, 16, 16]
    for count in (1, 3):
        shapes = {entry["name"]: entry["shape"][1:] for entry in document["inputs"][2:]}
        states = {name: torch.full((count, *shape), 7.0) for name, shape in shapes.items()}
        for t, expected in enumerate(readout(snn, x[:count])):
            logits, *after = of_runtime(
                tmp_path / "out" / "model.onnx", {"images": x[:count], "timestep": torch.tensor(t), **states}
            )
            assert torch.allclose(torch.from_numpy(logits), expected, **CLOSE)
            states = dict(zip(states, map(torch.from_numpy, after), strict=True))


@pytest.mark.slow
def test_onnx_of_a_run_gives_the_networks_readout_for_any_batch(tmp_path: Path) -> None:
    snn, x = converted("ternary-synchronous"), torch.randn(3, 3, 16, 16)
    assert export(snn, tmp_path / "out", timesteps=2)["outputs"][0]["shape"] == ["T", "batch", 7]
    for count in (1, 3):
        (found,) = of_runtime(tmp_path / "out" / "model.onnx", {"images": x[:count]})
        assert torch.allclose(torch.from_numpy(found), readout(snn, x[:count])[:2], **CLOSE)


@pytest.mark.slow
def test_onnx_needs_nothing_of_ours_and_tells_what_it_is(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    export(converted("qkformer-membrane"), tmp_path / "out", timesteps=1)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["vit2snn"])["timesteps"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch.export.load, in older releases
def test_programs_of_pytorch_are_loaded_without_our_operators(tmp_path: Path) -> None:
    snn, x = converted("faithful"), torch.randn(3, 3, 16, 16)
    export(snn, tmp_path / "out", "pt2", timesteps=2)
    told = {"vit2snn.json": ""}
    program = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=told)
    assert torch.allclose(program.module()(x), readout(snn, x)[:2], **CLOSE)
    assert json.loads(told["vit2snn.json"])["graph"] == "run"
    assert not [node for node in program.graph.nodes if "vit2snn" in str(node.target)]


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch.export.load, in older releases
def test_half_precision_is_exported_in_float32_and_the_network_stays_as_it_is(tmp_path: Path) -> None:
    snn, x = converted("qkformer-membrane").half(), torch.randn(2, 3, 16, 16)
    export(snn, tmp_path / "out", "pt2", timesteps=1)
    found = torch.export.load(tmp_path / "out" / "model.pt2").module()(x)
    assert found.dtype == torch.float32
    assert torch.allclose(found, readout(copy.deepcopy(snn).float(), x)[:1], **CLOSE)
    assert snn.network.head.weight.dtype == torch.float16


ALL = torch.cat([
    torch.ldexp(torch.ones(254), torch.arange(-126, 128)), torch.tensor([0.0, 1.5, 0.7, 3e-5, 65504.0]), torch.rand(1000) * 4
])  # fmt: skip


@pytest.mark.parametrize("neighbour", [0.0, torch.inf, None])
def test_exponents_by_operators_are_those_by_bits(neighbour: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = ALL if neighbour is None else torch.nextafter(ALL, torch.tensor(neighbour))
    x = torch.where(x < 2.0**-126, 0.0, x)  # not denormal
    expected = floats.octave(x), *floats.frexp(-x), floats.ldexp(x, torch.tensor(-3)), floats.copysign(x, x - 1)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    found = floats.octave(x), *floats.frexp(-x), floats.ldexp(x, torch.tensor(-3)), floats.copysign(x, x - 1)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other.to(one.dtype))


@pytest.mark.parametrize(
    "function", [ShiftLayerNorm(32), ShiftSoftmax(), ShiftGELU()], ids=lambda module: type(module).__name__
)
def test_functions_by_shifts_have_a_form_in_onnx(function: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(5, 32) * torch.tensor([1e-6, 0.1, 1.0, 10.0, 1e4])[:, None]
    with torch.no_grad():
        program = torch.export.export(function.eval(), (x,))
        write_onnx(program, tmp_path / "model.onnx", [], {})
        (found,) = of_runtime(tmp_path / "model.onnx", {"images": x})
        expected = function(x)
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))


@pytest.mark.slow
def test_the_command_exports_and_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(converted("qkformer-membrane"), "snn", source="demo")

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["export", *arguments])

    done = run("snn", "-o", "out", "--format", "pt2", "--timesteps", "4", "--json")
    assert done.exit_code == 0, done.output
    assert "made for 3 timesteps" in done.stderr
    assert json.loads(done.stdout)["timesteps"] == 4
    Path("out/mine.txt").write_text("mine")
    again = run("snn", "-o", "out", "--format", "pt2")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "--overwrite" in again.stderr
    assert run("snn", "-o", "snn", "--format", "pt2", "--overwrite").exit_code == 1  # it is no export
    assert run("snn", "-o", "out", "--format", "pt2", "--overwrite", "--step").exit_code == 0
    assert Path("out/mine.txt").read_text() == "mine"
    assert run("snn", "-o", "new", "--step", "--timesteps", "2").exit_code == 2
    assert run("none", "-o", "new").exit_code == 1
    assert not Path("new").exists()


@pytest.mark.slow
def test_what_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snn = converted("faithful")
    with pytest.raises(ValueError, match=r"no format 'h5'; choose one of onnx, pt2, nir"):
        export(snn, tmp_path / "out", "h5")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputExistsError):
        export(snn, tmp_path / "out", "pt2")
    with pytest.raises(ArtifactError, match="not a folder that vit2snn wrote"):
        export(snn, tmp_path / "out", "pt2", overwrite=True)
    snn.network.norm = Bessel()
    with pytest.raises(ExportError, match=r"ONNX has no form of prims\.bessel_j0, which module 'norm' calls"):
        export(snn, tmp_path / "new", timesteps=1)
    snn.network.norm = Undecided()
    with pytest.raises(ExportError, match=r"no graph that torch\.export can trace"):
        export(snn, tmp_path / "new", timesteps=1)
    assert not (tmp_path / "new").exists()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match="needs the package 'onnxscript'") as error:
        export(converted("exact"), tmp_path / "new", timesteps=1)
    assert "vit2snn[onnx]" in str(error.value.hint)


class Bessel(nn.Module):
    """Has an operator that ONNX does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Undecided(nn.Module):
    """Does what its values tell it to do."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x
