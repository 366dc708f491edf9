"""Compilers and exports see through neurons: a graph holds their kernels as operators, and computes what they compute."""

from __future__ import annotations

import threading
from collections.abc import Callable
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
    IntegerLIF,
    Neuron,
    Surrogate,
    TernaryLIF,
    eager,
    native,
)
from vit2snn.spiking.coding import CodedStep
from vit2snn.spiking.unrolled import unrolled

T, B = 4, 3
IMAGE = (5, 7)
ALPHABETS = {"binary": Alphabet(1, signed=False), "quarter octave": Alphabet(16, 2**0.25), "any ratio": Alphabet(6, 1.7)}
MEMBRANES: dict[str, Neuron] = {
    "IF": IF(), "soft": LIF(v_reset=None, detach_reset=False), "LIF": LIF(surrogate=Surrogate("atan", 2.0)), "PLIF": PLIF(),
    "elsewhere": LIF(v_reset=-0.3), "ternary": TernaryLIF(), "integer": IntegerLIF(),
}  # fmt: skip


def coded_steps(alphabet: Alphabet, coding: Coding = Coding.RATE, burst: int = 1) -> list[CodedStep]:
    neuron = CodedNeuron(alphabet, coding, spikes_per_step=burst)
    neuron.threshold = torch.tensor([[1.0], [0.5]])
    neuron.bias, neuron.prior = 0.1 * torch.randn(1, IMAGE[-1]), torch.randn(IMAGE)
    return [neuron.coded_step(t) for t in range(T)]


class Coded(nn.Module):
    """A layer behind the timesteps of a coded neuron, and all spikes."""

    def __init__(self, steps: list[CodedStep]) -> None:
        super().__init__()
        self.steps = steps
        self.layer = nn.Linear(IMAGE[-1], 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        decoded, sent = None, []
        for t, step in enumerate(self.steps):
            if t % 2:
                decoded, spikes = step.told(2 * x, decoded)
                sent += spikes
            else:
                decoded = step(2 * x, decoded, torch.empty_like(x))
        return self.layer(decoded), torch.stack(sent)


class Membrane(nn.Module):
    """The timesteps of a membrane, which begin anywhere."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return unrolled(3 * x, v, self.neuron.dynamics())


def compiled(module: nn.Module, *args: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager")


def exported(module: nn.Module, *args: Any) -> Callable[..., Any]:
    return torch.export.export(module, args).module()


WAYS = pytest.mark.parametrize("way", [compiled, exported])


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=ALPHABETS)
@torch.no_grad()
def test_coded_steps(way: Callable[..., Any], alphabet: Alphabet, dtype: torch.dtype) -> None:
    module = Coded(coded_steps(alphabet, burst=2)).to(dtype)
    x = torch.randn(B, *IMAGE, dtype=dtype)
    expected = module(x)
    run = way(module, x)
    for found, reference in zip(run(x), expected, strict=True):
        assert torch.equal(found, reference)
    with eager():
        assert all(map(torch.equal, run(x), expected))


def test_coded_steps_that_are_trained() -> None:
    module = Coded(coded_steps(ALPHABETS["quarter octave"]))
    x = torch.randn(B, *IMAGE, requires_grad=True)
    found, expected = (torch.autograd.grad(run(x)[0].square().sum(), x)[0] for run in (compiled(module), module))
    assert expected.any() and torch.equal(found, expected)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("neuron", MEMBRANES.values(), ids=MEMBRANES)
@torch.no_grad()
def test_membranes(way: Callable[..., Any], neuron: Neuron, dtype: torch.dtype) -> None:
    for v in (None, torch.randn(B, *IMAGE, dtype=dtype).transpose(-1, -2)):
        x = torch.randn(T, B, *IMAGE, dtype=dtype).transpose(-1, -2)
        module = Membrane(neuron)
        run = way(module, x, v)
        assert all(map(torch.equal, run(x, v), module(x, v)))
        with eager():
            assert all(map(torch.equal, run(x, v), module(x, v)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["IF", "soft", "LIF"])
def test_the_way_back(name: str, dtype: torch.dtype) -> None:
    module = Membrane(MEMBRANES[name])
    given = [torch.randn(T, B, *IMAGE, dtype=dtype), torch.randn(B, *IMAGE, dtype=dtype)]
    weights = [torch.randn_like(tensor) for tensor in given]

    def gradients(run: Callable[..., Any]) -> list[Tensor]:
        graded = [tensor.clone().requires_grad_() for tensor in given]
        results = run(*graded)
        return [*results, *torch.autograd.grad(sum((r * w).sum() for r, w in zip(results, weights, strict=True)), graded)]

    assert all(map(torch.equal, gradients(compiled(module)), gradients(module)))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch's own check
def test_the_operators_keep_torchs_rules() -> None:
    step = coded_steps(ALPHABETS["quarter octave"])[1]
    x = torch.randn(B, *IMAGE)
    levels = [step.levels.threshold, step.levels.gain, step.levels.floor, *(step.levels.steps or ())]
    for before, told in ((None, True), (x, False)):
        constants = step.prior, step.bias, step.levels.least, levels, 0.5, 0.5, 2, True, told
        torch.library.opcheck(torch.ops.vit2snn.coded_step.default, (x, before, *constants))
    frames = torch.randn(T, B, *IMAGE)
    for v in (None, x.clone().requires_grad_()):
        for given in (frames, frames.transpose(-1, -2).contiguous().transpose(-1, -2), frames.clone().requires_grad_()):
            arguments = given, v, *LIF().dynamics().scalars
            torch.library.opcheck(torch.ops.vit2snn.membrane_forward.default, arguments)


@pytest.mark.skipif(native.library() is None, reason="no C compiler")
def test_a_graph_holds_the_kernels() -> None:
    with torch.no_grad():
        program = torch.export.export(Coded(coded_steps(ALPHABETS["quarter octave"])), (torch.randn(B, *IMAGE),))
        assert str(program.graph).count("vit2snn.coded_step") == T
    program = torch.export.export(Membrane(LIF()), (torch.randn(T, B, *IMAGE), None))
    assert str(program.graph).count("vit2snn.membrane_forward") == 1


def test_threads_do_not_disturb_each_other() -> None:
    """Neither what computes nor what is prepared."""
    inside, done = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with eager():
            seen.append(native.is_eager())
            inside.set()
            done.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    seen.append(native.is_eager())
    done.set()
    thread.join()
    assert seen == [True, False]

    x = [torch.randn(B, 4, width) for width in range(2, 12)]
    neuron = CodedNeuron(ALPHABETS["quarter octave"])
    neuron.threshold, neuron.prior = torch.ones(1, 1), torch.zeros(())
    expected = [neuron.coded_step(0)(one, None) for one in x]
    for _ in range(20):
        step = CodedStep(neuron.alphabet, neuron.coding, 0, neuron.coded_step(0).levels, neuron.prior)
        found: dict[int, list[Tensor]] = {}
        start = threading.Barrier(4)

        def run(index: int, step: CodedStep = step, found: Any = found, start: Any = start) -> None:
            start.wait()
            found[index] = [step(one, None) for one in x]

        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        assert all(all(map(torch.equal, one, expected)) for one in found.values()) and len(found) == 4
