"""What neurons cost, beside copying their input, in one run.

    python benchmarks/neurons.py

LIF (τ = 2, hard reset that gradients do not pass, sigmoid surrogate with α = 4) and IF (soft reset) on 4 timesteps of 2^21
values: ours by the fused kernels and by the references in torch (``eager``), and SpikingJelly's where it is installed (see
`simulation`), which on the CPU computes in torch, and on a GPU by what it chooses itself. The coded neuron (16 levels,
differential coding) on a later chunk of one timestep of an activation and of attention weights of DeiT-tiny, 16 images; and the
histogram of what it would have to send. ``copy`` writes into a tensor that is there already, ``clone`` into new memory, as
neurons do.

Prints a table: milliseconds of a copy, and multiples of them. In the results are also ``gb_per_second``, counting what cannot
be left out (one reading of the input and of the state, one writing of the output and of the state), and ``share``, what that is
of the rate of a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from machine import RESULTS, alone, describe, medians, save
from torch import Tensor

from vit2snn.calibration import innovations
from vit2snn.spiking import IF, LIF, Alphabet, CodedNeuron, Coding, Neuron, Run, eager, over_time, running

RATIOS = {"2": 2.0, "2^(1/4)": 2**0.25}
WAYS = ("fused", "eager", "SpikingJelly", "clone")
Call = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        membranes: input of membrane neurons, ``[T, ...]``.
        coded: inputs of coded neurons, ``[T, B, ...]``.
    """

    membranes: tuple[int, ...] = (4, 2**21)
    coded: tuple[tuple[int, ...], ...] = ((1, 16, 197, 192), (1, 16, 3, 197, 197))


def eagerly(call: Call) -> Any:
    with eager():
        return call()


def copies(x: Tensor) -> dict[str, Call]:
    """What neurons are compared with."""
    source, target = x.detach(), torch.empty_like(x)
    return {"copy": lambda: target.copy_(source), "clone": source.clone}


def membranes(kind: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Neurons, ``[T, ...]`` to ``[T, ...]``."""
    ours: Neuron = LIF(tau=2.0) if kind == "LIF" else IF()
    found: dict[str, Callable[[Tensor], Tensor]] = {"ours": partial(over_time, ours)}
    if find_spec("spikingjelly"):
        from spikingjelly.activation_based import neuron, surrogate

        constants = {"surrogate_function": surrogate.Sigmoid(alpha=4.0), "step_mode": "m"}
        node = (
            neuron.LIFNode(2.0, detach_reset=True, **constants) if kind == "LIF" else neuron.IFNode(v_reset=None, **constants)
        )

        def theirs(x: Tensor) -> Tensor:
            node.reset()
            return node(x)

        found["SpikingJelly"] = theirs
    return found


def measure_membranes(kind: str, shape: tuple[int, ...], device: str, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Without gradients, with them, and with their way back."""
    x = (2 * torch.randn(shape, device=device)).to(dtype)
    weights, graded = torch.randn_like(x), x.clone().requires_grad_()

    def forward(neuron: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            neuron(x)

    def with_grad(neuron: Callable[[Tensor], Tensor]) -> None:
        neuron(graded)

    def backward(neuron: Callable[[Tensor], Tensor]) -> None:
        neuron(graded).backward(weights)
        graded.grad = None

    rows = []
    for name, run in {"forward": forward, "forward, with grad": with_grad, "forward and backward": backward}.items():
        calls: dict[str, Call] = {name: partial(run, neuron) for name, neuron in membranes(kind).items()}
        ours = {"fused": calls.pop("ours")}
        ours["eager"] = partial(eagerly, ours["fused"])
        failed = {name: reason for name, call in calls.items() if (reason := reason_against(call))}
        theirs = {name: call for name, call in calls.items() if name not in failed}
        # On the way back the input and the gradients of the spikes are read, and those of the input written.
        floor = 2.5 if run is backward else 1.0
        found = row(f"{kind}, {name}", x, ours | theirs | copies(x), repeats, floor)
        rows.append(found | ({"failed": failed} if failed else {}))
    return rows


def reason_against(call: Call) -> str:
    """Why a peer does not do what it is asked to; empty if it does."""
    try:
        call()
    except Exception as error:  # whatever it is, ours are worth measuring
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def later(neuron: CodedNeuron, x: Tensor, state: Tensor) -> None:
    """A chunk of a run, neither the first nor the last, so that a state is read and left."""
    run = Run(states={neuron: state})
    run.begin(len(x), len(x), last=False)
    with running(run):
        neuron(x.flatten(0, 1))


def coded(ratio: str, device: str) -> CodedNeuron:
    neuron = CodedNeuron(Alphabet(16, RATIOS[ratio]), Coding.DIFFERENTIAL)
    neuron.threshold, neuron.prior = torch.ones(1), torch.zeros(())
    return neuron.to(device)


@torch.no_grad()
def measure_coded(ratio: str, shape: tuple[int, ...], device: str, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """A coded neuron that has a state."""
    neuron, x = coded(ratio, device), torch.randn(shape, device=device)
    state = x[0] + 0.1 * torch.randn_like(x[0])
    x = x.to(dtype)
    fused: Call = partial(later, neuron, x, state)
    calls = {"fused": fused, "eager": partial(eagerly, fused)} | copies(x)
    return [row(f"coded, ratio {ratio}", x, calls, repeats, floor=1 + state.nbytes / x.nbytes)]


@torch.no_grad()
def measure_histograms(shape: tuple[int, ...], device: str, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """The histogram of what a coded neuron would have to send; none where there is no kernel for it."""
    neuron, state = coded("2", device), torch.randn(shape, device=device)
    x = (state + 0.1 * torch.randn_like(state)).to(dtype)
    fused: Call = partial(innovations._counted, neuron, 1, x, state, neuron.prior)
    if fused() is None:
        return []
    floor = (x.nbytes + state.nbytes) / (2 * x.nbytes)
    return [row("histogram of innovations", x, {"fused": fused} | copies(x), repeats, floor)]


def row(neuron: str, x: Tensor, calls: dict[str, Call], repeats: int, floor: float) -> dict[str, Any]:
    """Medians, and how many copies of ``x`` they are; ``floor`` copies read and write as much as cannot be left out."""
    found = medians(calls, repeats)
    return {
        "neuron": neuron, "shape": list(x.shape), "type": str(x.dtype).removeprefix("torch."), "repeats": repeats,
        "milliseconds": {name: 1000 * value for name, value in found.items()},
        "copies": {name: value / found["copy"] for name, value in found.items()},
        "gb_per_second": {name: 2e-9 * x.nbytes * _floor(name, floor) / value for name, value in found.items()},
        "share": {name: _floor(name, floor) * found["copy"] / value for name, value in found.items()},
    }  # fmt: skip


def _floor(way: str, floor: float) -> float:
    return 1.0 if way in ("copy", "clone") else floor


def measurements(sizes: Sizes, device: str, dtype: torch.dtype, repeats: int) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Calls that give some rows each."""
    for kind in ("LIF", "IF"):
        yield partial(measure_membranes, kind, sizes.membranes, device, dtype, repeats)
    for ratio in RATIOS:
        for shape in sizes.coded:
            yield partial(measure_coded, ratio, shape, device, dtype, repeats)
    for shape in sizes.coded:
        yield partial(measure_histograms, shape[1:], device, dtype, repeats)


def measure(device: str, repeats: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine and all rows."""
    calls = measurements(Sizes(), device, torch.float32, repeats)
    return describe(), [{"device": device} | row for call in calls for row in call()]


@click.command()
@click.option("--repeats", default=21, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS / "neurons.json")
def main(repeats: int, threads: int, device: str, output: Path) -> None:
    machine, rows = alone(measure, device, repeats, threads=threads)
    save(output, machine, rows, ("neuron", "shape", "device"))
    click.echo(f"{'':50} {'copy':>9} " + " ".join(f"{way:>13}" for way in WAYS))
    for one in rows:
        ratios = (f"{one['copies'][way]:11.2f} x" if way in one["copies"] else f"{'':13}" for way in WAYS)
        click.echo(f"{one['neuron'] + ', ' + str(one['shape']):50} {one['milliseconds']['copy']:6.2f} ms " + " ".join(ratios))


if __name__ == "__main__":
    main()
