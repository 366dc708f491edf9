"""The energies that the Spikingformer paper prints, from its authors' firing rates and the operations that our meter finds.

    OMP_NUM_THREADS=1 python benchmarks/published_energy.py > benchmarks/results/published_energy.json

The zoo's model with random weights is metered on one random image for one timestep. That gives its operations and their
multiply-accumulates; the rates that were measured are replaced by published ones (``data/spikingformer_rates.json``), and
`vit2snn.measure.conventional` makes an energy of them. Of what our exact rules would count, rates tell a part only. It is said
beside it, as the most that is possible, and as what it would be if spikes were spread evenly and independently.

Prints a table to stderr and JSON to stdout. (Of other models, no rates are published that settle the energy: those of
Spike-driven Transformer are, but several readings of that paper are possible, and they differ by a factor of almost 2.)
"""

from __future__ import annotations

import json
import math
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import click
import timm
import torch
from torch import Tensor, nn

import vit2snn.zoo
from vit2snn.measure import FLOAT32, Meter, Tally, conventional

DATA: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "spikingformer_rates.json").read_text())
TOKENS = 14 * 14
MJ = 1e-9  # of a pJ
PARTS = ("first convolution", "3x3 convolutions", "1x1 convolutions", "products", "pooling", "head")
NOTES = {
    "first convolution": "Equal: multiply-accumulates of the whole layer in every timestep, though the image does not change.",
    "3x3 convolutions": "The convention counts products with the zeros of the padding too; how many spikes lie at borders, "
    "from where they reach fewer outputs, is not published.",
    "1x1 convolutions": "Equal: the rate tells all.",
    "products": "The convention takes the operand that fires least as if it met spikes everywhere; how often they meet is not "
    "published.",
    "pooling": "The convention leaves it out; our meter charges an accumulate for each spike.",
    "head": "Multiply-accumulates in every timestep, as our model runs it; the authors run it once, on the mean of all.",
    "authors": "Head once, and biases counted as operations, which we leave out as the neurons': that is the log's sum.",
    "nowhere": "Normalisations, additions of the shortcuts, the neurons' dynamics, scales, and all memory traffic.",
}


class Incoming(NamedTuple):
    """What an operand is: spikes for a value, and the share of values that are not 0."""

    rate: float
    present: float

    @classmethod
    def binary(cls, rate: float) -> Incoming:
        return cls(rate, rate)


def incoming(published: dict[str, Any]) -> list[list[Incoming]]:
    """The operands of all operations, in order of execution."""
    binary = Incoming.binary
    operations = [[binary(1.0)]]
    for pool, convolution in zip(published["pools"], published["convolutions"], strict=True):
        operations += [[binary(pool)], [binary(convolution)]]
    for block in published["blocks"]:
        x, q, k, v, proj, fc1, fc2 = (binary(block[key]) for key in ("x", "q", "k", "v", "proj", "fc1", "fc2"))
        meeting = v.rate * k.rate  # of two spikes, if they are independent
        products = Incoming(TOKENS * meeting, 1 - (1 - meeting) ** TOKENS)
        operations += [[x], [x], [x], [v, k], [products, q], [proj], [fc1], [fc2]]
    return [*operations, [binary(1.0)]]


def part_of(tally: Tally, module: nn.Module) -> str:
    """Which of `PARTS` it is."""
    if tally.kind in ("product", "comparison"):
        return "products" if tally.kind == "product" else "pooling"
    if not isinstance(module, nn.Conv2d):
        return "head"
    if tally.multiplies.any():
        return "first convolution"
    return "1x1 convolutions" if module.kernel_size == (1, 1) else "3x3 convolutions"


def inside(tally: Tally, convolution: nn.Conv2d) -> float:
    """The share of multiply-accumulates that are not with zeros of the padding."""
    side = math.isqrt(tally.operands[0].elements // convolution.in_channels)
    kernel = torch.ones(1, 1, *convolution.kernel_size)
    ones: Tensor = nn.functional.conv2d(torch.ones(1, 1, side, side), kernel, None, convolution.stride, convolution.padding)
    return float(ones.mean()) / kernel.numel()


def most_and_even(tally: Tally, operands: list[Incoming], module: nn.Module, timesteps: int) -> tuple[float, float]:
    """What our meter would count at most, and of spikes spread evenly, in pJ."""
    if tally.multiplies.any():
        return (FLOAT32.mac * tally.macs * timesteps,) * 2
    if tally.kind == "comparison":
        return (FLOAT32.ac * tally.operands[0].elements * operands[0].rate * timesteps,) * 2
    each = FLOAT32.ac * tally.macs * timesteps
    share = inside(tally, module) if isinstance(module, nn.Conv2d) else 1.0
    return each * min(operand.rate for operand in operands), each * share * math.prod(operand.present for operand in operands)


def compare(name: str) -> dict[str, Any]:
    """The published energy of a model of the zoo, and what it is from the published rates, in mJ."""
    published = DATA["models"][name]
    timesteps = published["timesteps"]
    assert name in vit2snn.zoo.VARIANTS
    model: Any = timm.create_model(name).eval()
    with torch.no_grad(), Meter(model) as meter:
        model.readout(meter.show(torch.rand(1, 3, 224, 224)), 1)
    parts: dict[str, list[float]] = defaultdict(lambda: [0.0] * 3)
    biases = 0.0
    for tally, operands in zip(meter.tallies, incoming(published), strict=True):
        module = model.get_submodule(tally.module)
        for stream, operand in zip(tally.operands, operands, strict=True):
            stream.spikes = torch.full((timesteps,), operand.rate * stream.elements, dtype=torch.float64)
        counts = conventional([tally], 1, timesteps), *most_and_even(tally, operands, module, timesteps)
        part = part_of(tally, module)
        parts[part] = [total + MJ * count for total, count in zip(parts[part], counts, strict=True)]
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            biases += MJ * FLOAT32.ac * timesteps * operands[0].rate * tally.outputs
    convention = MJ * conventional(meter.tallies, 1, timesteps)
    head_once = MJ * FLOAT32.mac * sum(parameter.numel() for parameter in model.head.parameters())
    authors = convention - parts["head"][0] + head_once + biases
    columns = ("convention_mj", "ours_at_most_mj", "ours_if_even_mj")
    totals = (convention, *(sum(values[index] for values in parts.values()) for index in (1, 2)))
    return {
        "model": name, "timesteps": timesteps, "published_mj": published["published_mj"],
        "deviation_percent": round(100 * (convention / published["published_mj"] - 1), 2),
        **{column: round(total, 4) for column, total in zip(columns, totals, strict=True)},
        "authors_rules_mj": round(authors, 4), "log_mj": published["log_mj"],
        "parts": {
            part: {column: round(value, 4) for column, value in zip(columns, parts[part], strict=True)} for part in PARTS
        },
    }  # fmt: skip


@click.command()
def main() -> None:
    """Compare all models whose authors publish the rates of every layer."""
    torch.manual_seed(0)
    rows = []
    for name in DATA["models"]:
        row = compare(name)
        rows.append(row)
        text = f"published {row['published_mj']} mJ, from rates {row['convention_mj']:.2f} ({row['deviation_percent']:+} %)"
        ours = f"by our rules at most {row['ours_at_most_mj']:.2f}, of even spikes {row['ours_if_even_mj']:.2f}"
        click.echo(f"{name:20} T={row['timesteps']}: {text}; {ours}", err=True)
        for part, values in row["parts"].items():
            click.echo(f"  {part:20}" + " ".join(f"{value:8.4f}" for value in values.values()), err=True)
    about = {"source": DATA["source"], "commit": DATA["commit"], "energy": f"{FLOAT32.name}: {FLOAT32.mac} and {FLOAT32.ac} pJ"}
    machine = f"{platform.machine()}, {platform.system()}"
    click.echo(json.dumps({"machine": machine, **about, "rows": rows, "notes": NOTES}, indent=2))


if __name__ == "__main__":
    main()
