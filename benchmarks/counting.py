"""What counting every operation costs: an evaluation with and without it, in one run.

    OMP_NUM_THREADS=1 python benchmarks/counting.py > benchmarks/results/counting.json

``plain`` runs the ANN and all timesteps of the converted network and looks at the logits, ``counted`` does so under a meter,
and ``evaluate`` is `vit2snn.evaluate`, which also diagnoses and audits the first 8 images. The ViT of DeiT-tiny's size has
random weights, as has the Spikformer; a model of the zoo has no ANN. Prints a table to stderr and JSON to stdout.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import timm
import torch
from torch import Tensor

from vit2snn.convert import RECIPES, SpikingModel, load_model, to_spiking
from vit2snn.data import array_source, prepared
from vit2snn.measure import Meter, evaluate
from vit2snn.spiking import SpikingNetwork
from vit2snn.zoo import SpikingTransformer
from vit2snn.zoo.demo import demo_images

Batches = list[tuple[Tensor, Tensor]]


def demo() -> tuple[SpikingModel, Batches]:
    """The embedded model on 256 of its images, `faithful`, T = 4."""
    model = load_model("demo")
    calibration = torch.stack([s.image for s in prepared(model, array_source(*demo_images("train")), count=64)])
    scored = list(prepared(model, array_source(*demo_images("val")), count=256))
    images, labels = torch.stack([s.image for s in scored]), torch.tensor([s.label for s in scored])
    return to_spiking(model, RECIPES["faithful"], calibration), list(zip(images.split(32), labels.split(32), strict=True))


def deit() -> tuple[SpikingModel, Batches]:
    """A ViT of DeiT-tiny's size on 48 random images, `faithful`, T = 4."""
    images, labels = torch.randn(48, 3, 224, 224), torch.arange(48)
    snn = to_spiking(timm.create_model("deit_tiny_patch16_224").eval(), RECIPES["faithful"], images[:8])
    return snn, list(zip(images.split(16), labels.split(16), strict=True))


def zoo() -> tuple[SpikingTransformer, Batches]:
    """A Spikformer whose neurons fire, on 32 random images, T = 4."""
    model, images = timm.create_model("spikformer_4_384_cifar10"), torch.rand(32, 3, 32, 32)
    with torch.no_grad():
        model(images)  # statistics of its normalisations
    return model.eval(), list(zip(images.split(16), (torch.arange(32) % 10).split(16), strict=True))


@torch.no_grad()
def plain(model: SpikingNetwork, batches: Batches) -> Tensor:
    """Images whose class is right after each timestep, and nothing else."""
    right = torch.zeros(4)
    for x, y in batches:
        model.ann(x)
        right += (_readout(model, x).argmax(-1) == y).sum(1)
    return right


@torch.no_grad()
def counted(model: SpikingNetwork, batches: Batches) -> Tensor:
    """The same, and every operation."""
    right, meter = torch.zeros(4), Meter(model.network)
    for x, y in batches:
        model.ann(x)
        with meter:
            readout = _readout(model, meter.show(x))
        right += (readout.argmax(-1) == y).sum(1)
    return right


def _readout(model: SpikingNetwork, x: Tensor) -> Tensor:
    return model.readout(x, chunk=1 if isinstance(model, SpikingModel) else None)


def seconds(call: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@click.command()
@click.option("--repeats", default=5, show_default=True)
def main(repeats: int) -> None:
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    rows = []
    for name, make in {"demo": demo, "deit_tiny": deit, "spikformer_4_384_cifar10": zoo}.items():
        snn, batches = make()
        plain(snn, batches[:1])
        times: dict[str, list[float]] = {"plain": [], "counted": [], "evaluate": []}
        for _ in range(repeats):
            for way, run in {"plain": plain, "counted": counted, "evaluate": evaluate}.items():
                times[way].append(seconds(partial(run, snn, batches)))
        medians = {way: statistics.median(found) for way, found in times.items()}
        ratios = {way: round(median / medians["plain"], 2) for way, median in medians.items()}
        rows.append({"model": name, "images": sum(len(y) for _, y in batches), "seconds": medians, "ratio": ratios})
        click.echo(f"{name}: {ratios}", err=True)
    machine = {"threads": torch.get_num_threads(), "processor": platform.machine(), "torch": torch.__version__}
    click.echo(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
