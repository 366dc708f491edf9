"""Operations by SpikingJelly's counters and by our meter, on the same spikes, and what counting costs in time.

    pip install spikingjelly==2.0.0 loguru
    OMP_NUM_THREADS=1 python benchmarks/counters.py > benchmarks/results/counters.json

``SynOpCounter`` and ``MACCounter`` of SpikingJelly 2.0.0 watch what torch dispatches; `vit2snn.measure.Meter` watches the
functions that modules call. Both see: two convolutions and a linear layer between LIF neurons, with equal weights; the two
products of spiking self-attention; and a layer that reads the sums of two spikes, as behind SEW shortcuts. Prints a table to
stderr and JSON to stdout.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import click
import torch
from torch import Tensor, nn

from vit2snn.measure import Meter
from vit2snn.spiking import LIF, simulate

try:
    from spikingjelly.activation_based import functional, layer, neuron, op_counter
except ImportError as error:
    sys.exit(f"SpikingJelly is needed here: pip install spikingjelly==2.0.0 loguru ({error})")

T, B = 4, 2
SIZES = {"small": (8, 16), "larger": (64, 64)}
"""Channels of the first convolution, and pixels along a side of the image."""

LAYERS = {"0": "convolution of the image", "2": "convolution, stride 2", "5": "linear"}
NOTES = {
    "0": "Equal: the image is no spike, so all of it are multiply-accumulates, in each timestep.",
    "2": "Equal: both count the outputs that each spike reaches, fewer at the border and with the stride.",
    "5": "Equal: each spike reaches all outputs.",
    "k^T v": "Equal: an accumulate where a spike meets a spike.",
    "q (k^T v)": "Ours is less: a spike of q adds the integers of its row that are not 0, and SpikingJelly counts zeros too.",
    "sums of two spikes": "SpikingJelly takes any tensor with a value other than 0 and 1 for numbers, and counts dense "
    "multiply-accumulates; to us an integer n is n spikes, each of which adds a weight.",
    "time": "Both compute the first convolution in every timestep here; a meter that has seen images of the same size (again) "
    "knows the fan-out of each position already.",
}
Count = tuple[int, int]
"""Accumulates and multiply-accumulates, for all images and timesteps."""


class Products(nn.Module):
    """q (kᵀ v) of ``[B, 3, tokens, width]``."""

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unbind(1)
        return q @ (k.transpose(-1, -2) @ v)


def theirs(run: Callable[[], Any]) -> dict[str, Count]:
    """By SpikingJelly's counters, for each module, and ``"Global"``."""
    counters = op_counter.SynOpCounter(), op_counter.MACCounter()
    with op_counter.DispatchCounterMode(list(counters)):
        run()
    found = [{name: int(sum(calls.values())) for name, calls in counter.get_counts().items()} for counter in counters]
    return {name: (found[0].get(name, 0), found[1].get(name, 0)) for name in found[0] | found[1]}


def ours(network: nn.Module, x: Tensor, run: Callable[[Tensor], Any]) -> list[tuple[str, Count]]:
    """By the meter, for each operation in order: the module and the count."""
    with Meter(network) as meter:
        run(meter.show(x))
    return [(tally.module, (int(tally.accumulates.sum()), int(tally.multiplies.sum()))) for tally in meter.tallies]


class Pair:
    """The same network of SpikingJelly's layers and of ours.

    Args:
        width: channels of the first convolution.
        side: pixels along a side of the images.
    """

    def __init__(self, width: int, side: int) -> None:
        features = 2 * width * (side // 2) ** 2

        def build(conv: Any, lif: Any, flatten: Any, linear: Any) -> nn.Sequential:
            convolutions = conv(3, width, 3, padding=1, bias=False), conv(width, 2 * width, 3, 2, 1, bias=False)
            layers = convolutions[0], lif(), convolutions[1], lif(), flatten(), linear(features, 10, bias=False)
            return nn.Sequential(*layers).eval()

        self.first = build(layer.Conv2d, neuron.LIFNode, layer.Flatten, layer.Linear)
        functional.set_step_mode(self.first, "m")
        self.second = build(nn.Conv2d, LIF, nn.Flatten, nn.Linear)
        self.first[2].weight.mul_(6)  # so that its neurons fire
        self.second.load_state_dict(self.first.state_dict())
        self.images = 4 * torch.randn(B, 3, side, side)
        self.meter = Meter(self.second)

    def run_first(self) -> None:
        self.first(self.images.expand(T, *self.images.shape))
        functional.reset_net(self.first)

    def run_second(self, images: Tensor) -> None:
        simulate(self.second, images, T)

    def count_again(self) -> None:
        """With a meter that has seen images of this size."""
        with self.meter:
            self.run_second(self.meter.show(self.images))


def spikes(network: nn.Sequential, run: Callable[[], Any]) -> list[Tensor]:
    """What the neurons send in a run, ``[T * B, ...]`` each."""
    kept: list[Tensor] = []
    handles = [network[index].register_forward_hook(lambda module, x, sent: kept.append(sent.clone())) for index in (1, 3)]
    run()
    for handle in handles:
        handle.remove()
    return [sent.reshape(T * B, *sent.shape[-3:]) for sent in kept]


def row(name: str, spikingjelly: Count, vit2snn: Count, note: str = "") -> dict[str, Any]:
    """Both counts, and the ratio of ours to theirs where there is one."""
    made: dict[str, Any] = {"operation": name}
    for kind, other, mine in zip(("synops", "macs"), spikingjelly, vit2snn, strict=True):
        made[kind] = {"spikingjelly": other, "vit2snn": mine, "ratio": round(mine / other, 4) if other else None}
    click.echo(f"{name:26} synops {spikingjelly[0]:8} {vit2snn[0]:8}   macs {spikingjelly[1]:8} {vit2snn[1]:8}", err=True)
    return made | ({"note": note} if note else {})


def count_network() -> dict[str, Any]:
    """The small network, layer by layer."""
    both = Pair(*SIZES["small"])
    sent = list(zip(spikes(both.first, both.run_first), spikes(both.second, lambda: both.run_second(both.images)), strict=True))
    if not all(torch.equal(*pair) for pair in sent):
        raise click.ClickException("the neurons of the two networks send different spikes")
    there = theirs(both.run_first)
    here = dict(ours(both.second, both.images, both.run_second))
    rows = [row(name, there[f"Sequential.{key}"], here[key], NOTES[key]) for key, name in LAYERS.items()]
    total = sum(count[0] for count in here.values()), sum(count[1] for count in here.values())
    rates = [round(float(one.mean()), 4) for one, _ in sent]
    return {"spikes_equal": True, "rates": rates, "layers": rows, "total": row("total", there["Global"], total)}


def count_products() -> list[dict[str, Any]]:
    """Spiking self-attention's, and a layer that reads integers."""
    qkv = (torch.rand(B, 3, 64, 32) < torch.tensor([0.2, 0.05, 0.1]).reshape(3, 1, 1)).float()
    q, k, v = qkv.unbind(1)
    keys, kv = k.transpose(-1, -2), k.transpose(-1, -2) @ v
    linear, summed = nn.Linear(32, 16), q + (torch.rand(B, 64, 32) < 0.3)
    attention = Products()
    here = [*ours(attention, qkv, attention), *ours(linear, summed, linear)]
    there = [theirs(run)["Global"] for run in (lambda: keys @ v, lambda: q @ kv, lambda: linear(summed))]
    names = ("k^T v", "q (k^T v)", "sums of two spikes")
    return [row(name, other, mine, NOTES[name]) for name, other, (_, mine) in zip(names, there, here, strict=True)]


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def times(size: str, repeats: int) -> dict[str, Any]:
    """Median milliseconds of a run of each network, plain and counted, taken in turns."""
    both = Pair(*SIZES[size])
    calls: dict[str, Callable[[], Any]] = {
        "spikingjelly": both.run_first,
        "spikingjelly_counted": lambda: theirs(both.run_first),
        "vit2snn": lambda: both.run_second(both.images),
        "vit2snn_counted": lambda: ours(both.second, both.images, both.run_second),
        "vit2snn_counted_again": both.count_again,
    }
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(seconds(call))
    medians = {name: 1000 * statistics.median(found) for name, found in taken.items()}
    ratios = {name: round(medians[name] / medians[name.partition("_")[0]], 2) for name in medians if "_" in name}
    text = "; ".join(f"{name} {ratio} x" for name, ratio in ratios.items())
    click.echo(f"time, {size} network: {text}", err=True)
    return {"milliseconds": {name: round(median, 2) for name, median in medians.items()}, "multiple_of_plain": ratios}


@click.command()
@click.option("--repeats", default=101, show_default=True)
@torch.no_grad()
def main(repeats: int) -> None:
    """Count, then take the time."""
    torch.manual_seed(0)
    result = {
        "machine": f"{platform.machine()}, {platform.system()}", "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0], "spikingjelly": version("spikingjelly"),
        "timesteps": T, "batch": B, "network": count_network(), "products": count_products(),
        "time": {
            "repeats": repeats,
            "networks": {size: dict(zip(("channels", "side"), shape, strict=True)) for size, shape in SIZES.items()},
            **{size: times(size, repeats) for size in SIZES}, "note": NOTES["time"],
        },
    }  # fmt: skip
    click.echo(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
