"""What neurons cost, beside copying their input, in one run.

    python benchmarks/neurons.py

LIF (τ = 2, hard reset that gradients do not pass, sigmoid surrogate with α = 4) on 4 timesteps of 2^21 values: ours by the
fused kernels and by the references in torch (``eager``), and SpikingJelly's where it is installed (see `simulation`), which on
the CPU computes in torch. The coded neuron (16 levels, differential coding) on one timestep of an activation and of attention
weights of DeiT-tiny, 16 images. ``copy`` writes into a tensor that is there already, ``clone`` into new memory, as neurons do.
Prints a table: milliseconds of a copy, and multiples of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from machine import RESULTS, alone, describe, medians, save
from torch import Tensor

from vit2snn.spiking import LIF, Alphabet, CodedNeuron, Coding, eager, over_time

MEMBRANES = (4, 2**21)
CODED = ((16, 197, 192), (16, 3, 197, 197))
RATIOS = {"2": 2.0, "2^(1/4)": 2**0.25}
WAYS = ("fused", "eager", "SpikingJelly", "clone")
Call = Callable[[], Any]


def eagerly(call: Call) -> Any:
    with eager():
        return call()


def copies(x: Tensor) -> dict[str, Call]:
    """What neurons are compared with."""
    source, target = x.detach(), torch.empty_like(x)
    return {"copy": lambda: target.copy_(source), "clone": source.clone}


def membranes() -> dict[str, Callable[[Tensor], Tensor]]:
    """LIF neurons, ``[T, ...]`` to ``[T, ...]``."""
    ours = LIF(tau=2.0)
    found: dict[str, Callable[[Tensor], Tensor]] = {"ours": partial(over_time, ours)}
    if find_spec("spikingjelly"):
        from spikingjelly.activation_based import neuron, surrogate

        node = neuron.LIFNode(2.0, surrogate_function=surrogate.Sigmoid(alpha=4.0), detach_reset=True, step_mode="m")

        def theirs(x: Tensor) -> Tensor:
            node.reset()
            return node(x)

        found["SpikingJelly"] = theirs
    return found


def measure_membranes(device: str, repeats: int) -> list[dict[str, Any]]:
    """Without gradients, with them, and with their way back."""
    x = 2 * torch.randn(MEMBRANES, device=device)
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
    for kind, run in {"forward": forward, "forward, with grad": with_grad, "forward and backward": backward}.items():
        calls: dict[str, Call] = {name: partial(run, neuron) for name, neuron in membranes().items()}
        ours = {"fused": calls.pop("ours")}
        ours["eager"] = partial(eagerly, ours["fused"])
        rows.append(row(f"LIF, {kind}", list(x.shape), ours | calls | copies(x), repeats))
    return rows


@torch.no_grad()
def measure_coded(device: str, repeats: int) -> list[dict[str, Any]]:
    """The second timestep, in which a neuron has a state."""
    rows = []
    for name, ratio in RATIOS.items():
        neuron = CodedNeuron(Alphabet(16, ratio), Coding.DIFFERENTIAL).to(device)
        neuron.threshold, neuron.prior = torch.ones(1, device=device), torch.zeros((), device=device)
        for shape in CODED:
            x = torch.randn(1, *shape, device=device)
            state = x[0] + 0.1 * torch.randn(shape, device=device)
            fused: Call = partial(neuron.run, x, 1, state)
            calls = {"fused": fused, "eager": partial(eagerly, fused)} | copies(x)
            rows.append(row(f"coded, ratio {name}", list(shape), calls, repeats))
    return rows


def row(neuron: str, shape: list[int], calls: dict[str, Call], repeats: int) -> dict[str, Any]:
    """Medians, and how many copies they are."""
    found = medians(calls, repeats)
    milliseconds = {name: 1000 * value for name, value in found.items()}
    ratios = {name: value / found["copy"] for name, value in found.items()}
    return {"neuron": neuron, "shape": shape, "repeats": repeats, "milliseconds": milliseconds, "copies": ratios}


def measure(device: str, repeats: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine and all rows."""
    rows = measure_membranes(device, repeats) + measure_coded(device, repeats)
    return describe(), [{"device": device} | row for row in rows]


@click.command()
@click.option("--repeats", default=21, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS / "neurons.json")
def main(repeats: int, threads: int, device: str, output: Path) -> None:
    machine, rows = alone(measure, device, repeats, threads=threads)
    save(output, machine, rows, ("neuron", "shape", "device"))
    click.echo(f"{'':44} {'copy':>9} " + " ".join(f"{way:>13}" for way in WAYS))
    for one in rows:
        ratios = (f"{one['copies'][way]:11.2f} x" if way in one["copies"] else f"{'':13}" for way in WAYS)
        click.echo(f"{one['neuron'] + ', ' + str(one['shape']):44} {one['milliseconds']['copy']:6.2f} ms " + " ".join(ratios))


if __name__ == "__main__":
    main()
