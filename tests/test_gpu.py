"""The kernels for GPUs give, to the last bit, what the references in torch give: on a GPU, or interpreted on the CPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import brief, make_vit
from test_native import ALPHABETS, MEMBRANES, B, T, calibrated, frames, heard
from torch import Tensor

from vit2snn.calibration import innovations
from vit2snn.calibration.histogram import Histogram
from vit2snn.convert import to_spiking
from vit2snn.spiking import (
    LIF,
    Alphabet,
    CodedNeuron,
    Coding,
    IntegerLIF,
    Neuron,
    Run,
    Surrogate,
    eager,
    gpu,
    over_time,
    running,
    simulate,
)  # fmt: skip
from vit2snn.spiking.layout import layout
from vit2snn.spiking.surrogate import SHAPES
from vit2snn.spiking.unrolled import unrolled

pytest.importorskip("triton")
LOWEST = torch.finfo(torch.float32).tiny


@contextmanager
def on_gpu() -> Iterator[torch.device]:
    """Where the kernels compute; on the CPU all tensors take the way that those of a GPU take."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):  # the interpreter computes by numpy
        patch.setattr(gpu, "can_compute", lambda x: x.device.type == "cpu" and x.dtype in gpu.READ and gpu.is_called(x))
        for module in ("spiking.coding", "spiking.unrolled", "calibration.innovations"):
            patch.setattr(f"vit2snn.{module}.kernels", lambda x: None)
        yield torch.device("cpu")


@pytest.fixture
def device() -> Iterator[torch.device]:
    with on_gpu() as found:
        yield found


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> list[str]:
    """The kernels that have been launched."""
    names: list[str] = []
    launch = gpu._launch

    def noting(name: str, *arguments: Any) -> None:
        names.append(name)
        launch(name, *arguments)

    monkeypatch.setattr(gpu, "_launch", noting)
    return names


def same(found: Tensor, expected: Tensor) -> bool:
    """NaN in the same places, all else equal to the last bit but for the sign of zero."""
    return bool(torch.equal(found.isnan(), expected.isnan())) and torch.equal(found.nan_to_num(), expected.nan_to_num())


def adversarial(x: Tensor, theta: Tensor, prior: Tensor) -> Tensor:
    """``x`` with values on thresholds, half-way between levels, beside these, and such as arithmetic is weak on."""
    flat = x[0].flatten()
    edges = torch.cat([theta.flatten()[:1] * factor for factor in (1, 0.5, 0.75, 0.375, 2**-0.5, 1.5)]) + prior.flatten()[0]
    near = [edges, *(torch.nextafter(edges, edges.new_tensor(way)) for way in (torch.inf, -torch.inf)), -edges]
    odd = edges.new_tensor([0.0, -0.0, LOWEST, -LOWEST / 8, 1e38, -1e38, torch.inf, -torch.inf, torch.nan])
    values = torch.cat([*near, odd])[: len(flat)]
    flat[: len(values)] = values
    x[0] = flat.view_as(x[0])
    return x


@pytest.mark.parametrize("tables", ["scalar", "along rows", "by row"])
@pytest.mark.parametrize("coding", list(Coding))
@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=ALPHABETS)
def test_coded_neurons(alphabet: Alphabet, coding: Coding, tables: str, device: torch.device, launched: list[str]) -> None:
    ways: list[tuple[tuple[int, ...], int, int | None]] = [((4, 19), 1, None), ((2, 3, 8), 2, 3)]
    for image, burst, chunk in ways:
        neuron = calibrated(alphabet, coding, image, tables, burst)
        x = frames(image, neuron)
        odd = adversarial(x.clone(), neuron.threshold[0], neuron.prior).to(device)
        neuron, x = neuron.to(device), x.to(device)
        for given in (x, odd):
            with eager():
                expected = simulate(neuron, given, T, chunk)
            launched.clear()
            assert same(simulate(neuron, given, T, chunk), expected)
            assert launched == ["coded"] * (1 if chunk is None else 2)
        found, spikes = heard(neuron, x, chunk)
        with eager():
            expected, sent = heard(neuron, x, chunk)
        assert torch.equal(found, expected) and len(spikes) == len(sent) == T * burst
        assert all(map(torch.equal, spikes, sent)) and any(spike.any() for spike in spikes)


def test_inputs_may_lie_in_memory_in_any_way(device: torch.device) -> None:
    neuron = calibrated(ALPHABETS["quarter octave"], Coding.RATE, (3, 5, 8), "by row")
    x = frames((3, 5, 8), neuron).to(device)
    neuron.to(device)
    with eager():
        expected = simulate(neuron, x, T, chunk=2)
    qkv = torch.randn(T, B, 5, 2, 3, 8, device=device)
    qkv[..., 1, :, :] = x.transpose(2, 3)
    for other in (qkv[..., 1, :, :].transpose(2, 3), x.transpose(2, 4).contiguous().transpose(2, 4)):
        assert not other.is_contiguous()
        assert torch.equal(simulate(neuron, other, T, chunk=2), expected)


def test_a_still_image_is_read_at_every_timestep(device: torch.device) -> None:
    neuron = calibrated(ALPHABETS["shift"], Coding.DIFFERENTIAL, (3, 8), "scalar").to(device)
    x = torch.randn(B, 3, 8, device=device)
    with eager():
        expected = simulate(neuron, x, T)
    assert torch.equal(simulate(neuron, x, T, still=True), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_read_and_written_and_states_are_float32(
    dtype: torch.dtype, device: torch.device, launched: list[str]
) -> None:
    neurons: list[Neuron] = [LIF(), IntegerLIF(), calibrated(ALPHABETS["shift"], Coding.DIFFERENTIAL, (4, 19), "by row")]
    for neuron in neurons:
        x = (2 * torch.randn(T, B, 4, 19)).to(device, dtype)
        neuron.to(device)
        launched.clear()
        found, run = [], Run(batch=B)
        for start in range(0, T, 2):
            part = x[start : start + 2]
            run.begin(start, len(part), last=start + len(part) == T)
            with running(run):
                found.append(neuron(part.flatten(0, 1)))
            assert all(state.dtype == torch.float32 for state in run.states.values())
        assert len(launched) == 3 and {one.dtype for one in found} == {dtype}
        with eager():
            expected = over_time(neuron, x.float()).flatten(0, 1)
        # The interpreter cuts off where a GPU rounds.
        torch.testing.assert_close(torch.cat(found).float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("neuron", MEMBRANES.values(), ids=MEMBRANES)
@torch.no_grad()
def test_membranes(neuron: Neuron, chunk: int | None, device: torch.device, launched: list[str]) -> None:
    neuron = neuron.to(device)
    x = 3 * torch.randn(T, B, 2, 9, 70, generator=torch.Generator().manual_seed(2))
    x[0, 0] = getattr(neuron, "threshold", 1.0) * getattr(neuron, "tau", 1.0)  # on the threshold
    x[1, 1, 0, 0, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e38])
    x = x.to(device)
    for given in (x, x.transpose(-1, -2), x[..., ::2]):
        launched.clear()
        found = simulate(neuron, given, T, chunk)
        assert launched == ["membrane_forward"] * (1 if chunk is None else 3)
        with eager():
            assert same(found, simulate(neuron, given, T, chunk))
        assert 0.05 < found.nan_to_num().abs().mean() < 4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constants", [{}, {"detach_reset": False}, {"v_reset": None, "detach_reset": False}])
def test_gradients(shape: str, constants: dict[str, Any], device: torch.device, launched: list[str]) -> None:
    dynamics = LIF(tau=2.5, surrogate=Surrogate(shape, 2.0), **constants).dynamics()
    generator = torch.Generator().manual_seed(3)
    x, weights, v = (torch.randn(size, 1111, generator=generator).to(device) for size in (T, T + 1, 1))
    graded = [(2 * x).requires_grad_(), v[0].clone().requires_grad_()]
    for keeps in (True, False):

        def gradients(keeps: bool = keeps) -> tuple[Tensor, ...]:
            spikes, last = unrolled(graded[0], graded[1], dynamics, keeps)
            loss = (spikes * weights[:-1]).sum() + (0 if last is None else (last * weights[-1]).sum())
            return spikes.detach(), *torch.autograd.grad(loss, graded)

        launched.clear()
        spikes, *found = gradients()
        assert launched == ["membrane_forward", "membrane_backward"]
        with eager():
            expected, *references = gradients()
        assert torch.equal(spikes, expected)
        for gradient, reference in zip(found, references, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("coding", [Coding.RATE, Coding.DIFFERENTIAL])
@pytest.mark.parametrize("prior", [(), (6,), (5, 6)])
def test_histograms(
    prior: tuple[int, ...], coding: Coding, signed: bool, device: torch.device, launched: list[str]
) -> None:  # fmt: skip
    neuron = CodedNeuron(Alphabet(4, signed=signed), coding).to(device)
    neuron.prior = torch.randn(prior, device=device)
    x, m = torch.randn(2, 7, 5, 12, device=device).mul(5).sinh()[..., ::2]
    for t, before in ((0, None), (2, m)):
        counts = innovations._counted(neuron, t, x, before, neuron.prior)
        held = coding.held(t, neuron.prior.expand(x.shape) if before is None else before, neuron.prior)
        expected = neuron.alphabet.magnitudes(coding.innovation(t, x, held))  # type: ignore[union-attr]
        histogram = Histogram()
        histogram.update(expected.reshape(1, -1))
        assert counts is not None and torch.equal(counts, histogram.counts.to(device))
        assert int(counts.sum()) == x.numel() and int((counts > 0).sum()) > 50
    assert launched == ["innovations"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["faithful", "ternary-synchronous", "qkformer", "spike-driven"])
def test_conversions_and_runs(recipe: str) -> None:
    """On the CPU, by way of the kernels for GPUs: the same to the last bit."""
    images = torch.randn(4, 3, 16, 16)

    def converted(device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(0)
        ann = make_vit(depth=1, embed_dim=16).to(device)
        snn = to_spiking(ann, brief(recipe).changed(timesteps=2), images.to(device).split(2))
        with torch.inference_mode():
            logits = torch.cat([snn(images.to(device), chunk=chunk).cpu() for chunk in (None, 1)])
        return {name: value.cpu() for name, value in snn.state_dict().items()}, logits

    expected, logits = converted(torch.device("cpu"))
    with on_gpu() as device:
        tables, found = converted(device)
    exact = device.type == "cpu"  # matrix products of a GPU round differently
    torch.testing.assert_close(found, logits, rtol=0 if exact else 1e-2, atol=0 if exact else 1e-2)
    assert tables.keys() == expected.keys() and (not exact or all(map(torch.equal, tables.values(), expected.values())))


def test_where_triton_cannot_compile_torch_computes_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no compiler\nat all")

    ones = torch.ones
    monkeypatch.setattr(gpu, "_launch", refuse)
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    gpu.is_available.cache_clear()
    with caplog.at_level(logging.WARNING, logger="vit2snn"):
        assert [gpu.is_available(0), gpu.is_available(0)] == [False, False]
    gpu.is_available.cache_clear()
    (record,) = caplog.records
    assert record.getMessage().endswith("neurons are several times slower: no compiler")


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_there() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compiling.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    found = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in found} == {"coded", "membrane_forward", "membrane_backward", "innovations"}
    assert len(found) > 20 and not any(int(fused) for _, fused in found)  # multiply-adds would round otherwise


def test_layouts_join_axes_that_nobody_can_tell_apart() -> None:
    def of(image: tuple[int, ...], strides: tuple[int, ...], *tables: tuple[int, ...]) -> tuple[Any, ...]:
        found = layout(image, strides, tables, torch.device("cpu"))
        return found.rows, found.width, found.varies, found.aligned

    assert of((197, 192), (192, 1), (1, 1), (197, 192)) == (1, 197 * 192, (False, True), True)
    assert of((197, 192), (192, 1), (192,), ()) == (197, 192, (True, False), True)
    assert of((3, 197, 64), (64, 576, 1), (), (3, 1, 1)) == (591, 64, (False, False), True)
    assert of((3, 5, 7), (35, 7, 1), (3, 1, 1)) == (3, 35, (False,), False)
    assert of((4, 1), (1, 1), (4, 1)) == (1, 4, (True,), True)
    assert of((1, 1), (1, 1), (1,)) == (1, 1, (False,), True)
