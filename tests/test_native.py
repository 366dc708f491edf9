"""The fused kernels give, to the last bit, what the references in torch give."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit2snn.spiking import (
    IF,
    LIF,
    PLIF,
    Alphabet,
    CodedNeuron,
    Coding,
    Event,
    IntegerLIF,
    Neuron,
    Run,
    Surrogate,
    TernaryLIF,
    eager,
    native,
    probing,
    simulate,
)  # fmt: skip
from vit2snn.spiking.surrogate import SHAPES
from vit2snn.spiking.unrolled import forward_reference

T, B = 5, 3
needs_kernels = pytest.mark.skipif(native.library() is None, reason="no C compiler")

ALPHABETS = {
    "binary": Alphabet(1, signed=False), "ternary": Alphabet(1), "shift": Alphabet(6), "half octave": Alphabet(7, 2**0.5),
    "third octave": Alphabet(9, 2 ** (1 / 3)), "quarter octave": Alphabet(16, 2**0.25),
    "unsigned": Alphabet(5, 2**0.5, signed=False),
}  # fmt: skip


def calibrated(alphabet: Alphabet, coding: Coding, image: tuple[int, ...], tables: str, burst: int = 1) -> CodedNeuron:
    """A neuron with tables of one of several shapes; the levels of its timesteps differ."""
    neuron = CodedNeuron(alphabet, coding, spikes_per_step=burst)
    generator = torch.Generator().manual_seed(7)
    row, column, one = (*(1,) * (len(image) - 1), image[-1]), (*image[:-1], 1), (1,) * len(image)
    of_levels = {"scalar": one, "along rows": row, "by row": column}[tables]
    neuron.threshold = 0.5 + torch.rand(2, *of_levels, generator=generator)
    neuron.silence = 0.1 * torch.rand(2, *(row if tables == "by row" else column), generator=generator)
    neuron.silence.flatten(1)[:, 0] = torch.inf  # a view
    if alphabet.levels > 1 and alphabet.ratio != 2:
        ratios = torch.tensor([2.0, alphabet.ratio])
        neuron.ratio = ratios[torch.randint(2, (2, *of_levels), generator=generator)]
    if tables != "scalar":
        neuron.bias = 0.1 * torch.randn(3, *row, generator=generator)
    neuron.prior = torch.randn(image if tables == "by row" else row if tables == "along rows" else (), generator=generator)
    return neuron


def frames(image: tuple[int, ...], neuron: CodedNeuron) -> Tensor:
    """Inputs, some of which lie on a threshold or half-way between two levels."""
    x = 2 * torch.randn(T, B, *image, generator=torch.Generator().manual_seed(1))
    theta = neuron.threshold[0].expand(image)
    x[0, 0], x[0, 1] = neuron.prior + theta, neuron.prior + 0.75 * theta
    return x


def heard(neuron: CodedNeuron, x: Tensor, chunk: int | None) -> tuple[Tensor, list[Tensor]]:
    events: list[Event] = []
    with probing(nn.ModuleDict({"n": neuron}), {"n": events.append}):
        told = simulate(neuron, x, T, chunk)
    silent = simulate(neuron, x, T, chunk)
    assert torch.equal(told, silent)
    return silent, [spikes for event in events for spikes in event.spikes]


@needs_kernels
@pytest.mark.parametrize("tables", ["scalar", "along rows", "by row"])
@pytest.mark.parametrize("coding", list(Coding))
@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=ALPHABETS)
def test_coded_neurons(alphabet: Alphabet, coding: Coding, tables: str) -> None:
    for image, burst, chunk in itertools.product([(4, 19), (2, 3, 8)], [1, 2], [None, 1]):
        neuron = calibrated(alphabet, coding, image, tables, burst)
        x = frames(image, neuron)
        fused, spikes = heard(neuron, x, chunk)
        with eager():
            expected, sent = heard(neuron, x, chunk)
        assert torch.equal(fused, expected)
        assert len(spikes) == len(sent) == T * burst
        assert all(map(torch.equal, spikes, sent))
        assert any(spike.any() for spike in spikes)


@needs_kernels
def test_inputs_may_lie_in_memory_in_any_way() -> None:
    neuron = calibrated(ALPHABETS["quarter octave"], Coding.DIFFERENTIAL, (3, 5, 8), "by row")
    x = frames((3, 5, 8), neuron)
    expected = simulate(neuron, x, T, chunk=1)
    qkv = torch.randn(T, B, 5, 2, 3, 8)
    qkv[..., 1, :, :] = x.transpose(2, 3)
    for other in (qkv[..., 1, :, :].transpose(2, 3), x.transpose(2, 4).contiguous().transpose(2, 4)):
        assert not other.is_contiguous()
        assert torch.equal(simulate(neuron, other, T, chunk=1), expected)


@needs_kernels
def test_tables_that_change_are_seen_and_copies_have_their_own() -> None:
    import copy

    neuron = calibrated(ALPHABETS["shift"], Coding.DIFFERENTIAL, (4, 6), "scalar")
    x = torch.randn(B, 4, 6)
    first = simulate(neuron, x, 2)
    other = copy.deepcopy(neuron)
    neuron.threshold.mul_(3)
    assert not torch.equal(simulate(neuron, x, 2), first)
    assert torch.equal(simulate(other, x, 2), first)
    neuron.threshold = other.threshold.clone()
    assert torch.equal(simulate(neuron, x, 2), first)


def test_what_the_kernels_do_not_know_is_computed_all_the_same() -> None:
    """Ratios other than 2^(1/m), double precision, gradients."""
    for alphabet, dtype in ((Alphabet(6, 1.7), torch.float32), (Alphabet(6), torch.float64)):
        neuron = calibrated(alphabet, Coding.DIFFERENTIAL, (4, 6), "scalar").to(dtype)
        neuron.ratio = torch.empty(0)
        x = torch.randn(B, 4, 6, dtype=dtype, requires_grad=True)
        decoded = simulate(neuron, x, 12)
        assert (decoded[-1] - x)[:, 1:].abs().max() < (decoded[0] - x)[:, 1:].abs().max()
        (gradient,) = torch.autograd.grad(decoded.sum(), x)
        assert gradient.any()


MEMBRANES: dict[str, Neuron] = {
    "IF": IF(), "soft IF": IF(v_reset=None, v_start=0.5), "LIF": LIF(), "LIF, tau 3": LIF(tau=3.0, threshold=0.7),
    "no decay": LIF(decay_input=False), "soft LIF": LIF(tau=1.5, v_reset=None), "reset elsewhere": LIF(v_reset=-0.3),
    "PLIF": PLIF(tau=2.5), "ternary": TernaryLIF(), "integer": IntegerLIF(),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("neuron", MEMBRANES.values(), ids=MEMBRANES)
@torch.no_grad()
def test_membranes(neuron: Neuron, chunk: int | None) -> None:
    x = 3 * torch.randn(T, B, 2, 9, 70, generator=torch.Generator().manual_seed(2))
    x[0, 0] = getattr(neuron, "threshold", 1.0) * getattr(neuron, "tau", 1.0)  # on the threshold
    for given in (x, x.transpose(-1, -2), x[..., ::2]):
        fused = simulate(neuron, given, T, chunk)
        with eager():
            assert torch.equal(fused, simulate(neuron, given, T, chunk))
        assert 0.05 < fused.abs().mean() < 4


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constants", [{}, {"detach_reset": False}, {"v_reset": None, "detach_reset": False}])
def test_gradients(shape: str, constants: dict[str, Any]) -> None:
    neuron = LIF(tau=2.5, surrogate=Surrogate(shape, 2.0), **constants)
    generator = torch.Generator().manual_seed(3)
    x, weights, v = (torch.randn(size, 1111, generator=generator) for size in (T, T + 1, 1))
    found = []
    for is_eager in (False, True):
        graded, start = 2 * x, v[0].clone()
        graded.requires_grad_(), start.requires_grad_()
        if is_eager:
            with eager():
                spikes, last = neuron.advance(graded, start, Run(last=False))
                ((spikes * weights[:-1]).sum() + (last * weights[-1]).sum()).backward()
        else:
            spikes, last = neuron.advance(graded, start, Run(last=False))
            ((spikes * weights[:-1]).sum() + (last * weights[-1]).sum()).backward()
        found.append((spikes.detach(), graded.grad, start.grad))
    (spikes, *gradients), (expected, *references) = found
    assert torch.equal(spikes, expected)
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6)


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CC", "false")
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_without_a_compiler_torch_computes_and_one_line_says_so(
    without_compiler: None, caplog: pytest.LogCaptureFixture
) -> None:
    neuron = LIF()
    x = 2 * torch.randn(T, B, 4)
    with caplog.at_level(logging.WARNING, logger="vit2snn"), torch.no_grad():
        spikes = [neuron.advance(x, None, Run())[0] for _ in range(2)]
    assert torch.equal(spikes[0], forward_reference(x, None, neuron.dynamics())[0])
    assert [record.getMessage()[:43] for record in caplog.records] == ["the fused kernels of neurons cannot be built"[:43]]


@pytest.mark.slow
def test_kernels_are_built_where_the_cache_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    if native.library() is None:
        pytest.skip("no C compiler")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    native.library.cache_clear()
    assert native.library() is not None
    assert len(list((tmp_path / "new" / "cache" / "vit2snn").glob("neurons-*.so"))) == 1
    native.library.cache_clear()
