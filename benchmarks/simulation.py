"""Time and memory of converted networks over those of the ANN.

    python benchmarks/simulation.py

A timm model with random weights is converted (recipe `faithful`, calibrated on 4 images of noise) and shown a batch for T
timesteps; later timesteps than the recipe's keep its last thresholds. ``fused`` and ``eager`` compute all timesteps at once by
the kernels and by the references in torch, ``chunk=1`` one at a time; with ``--images-at-once N`` a batch is also shown in
parts of N images. Of each:

* time: its median seconds over T times those of the ANN, taken in turns in one process;
* memory: what it adds at its peak to what its process, which does nothing else, had resident before (interpreter, torch,
  weights, images), over what the ANN adds; ``peak`` is all that the process has resident then. On a GPU both are of tensors.

Peers, where SpikingJelly is installed, here beside the environment's own packages, none of which it may replace:

    pip install --target DIR --no-deps spikingjelly==2.0.0 loguru
    PYTHONPATH=DIR python benchmarks/simulation.py

* ``SpikingJelly IF``: the same network with a softly reset ``IFNode`` in step mode m in place of each coded neuron. It is no
  conversion (nothing is calibrated), but the same operations between the plainest neurons. On the CPU these compute in torch.
* ``SpikingJelly STA``: ``STATransformerRecipe`` with ``mode="spiking_encoder"``, as in its ViT example; its other mode sends no
  spikes. It cannot trace timm's ViTs ("does not support function node layer_norm", and scaled dot products after that), so it
  converts torchvision's ViT of the same size, and its ratios are to that one. The image comes at t = 0 and nothing afterwards;
  as its encoders send any number of spikes at once, its readout stays as it is from the first timestep on.

Prints a table; rows take the place of older ones in the results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import timm
import torch
from machine import RESULTS, Memory, alone, describe, medians, memory, save
from torch import Tensor, nn

from vit2snn import load, to_spiking
from vit2snn.convert import RECIPES
from vit2snn.convert.conversion import structure
from vit2snn.spiking import eager, neurons

MODELS = ("deit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
IMAGE = (3, 224, 224)
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: timm's name.
        folder: of the converted model.
        timesteps: T.
        batch: images.
        part: images at once, where a batch is shown in parts.
        device: where all of it is.
    """

    model: str
    folder: str
    timesteps: int
    batch: int
    part: int | None
    device: str

    def images(self) -> Tensor:
        return torch.randn(self.batch, *IMAGE).to(self.device)


def timm_model(name: str) -> Any:
    """The same random weights every time."""
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def torchvision_model(name: str) -> nn.Module:
    """Torchvision's ViT of the same size."""
    from torchvision.models import VisionTransformer

    like = timm_model(name)
    block = like.blocks[0]
    size = len(like.blocks), block.attn.num_heads, like.embed_dim, block.mlp.fc1.out_features
    return VisionTransformer(IMAGE[-1], like.patch_embed.patch_size[0], *size).eval()


def convert(name: str, folder: str) -> None:
    """Write the spiking network."""
    ann = timm_model(name)
    to_spiking(ann, "faithful", torch.randn(4, *IMAGE)).save(folder, overwrite=True)


def ann(case: Case, make: Callable[[str], nn.Module] = timm_model) -> Call:
    return partial(make(case.model).to(case.device), case.images())


@cache
def spiking_model(folder: str, device: str) -> Any:
    """The network of all ways that run it."""
    return load(folder).to(device)


def converted(case: Case, fused: bool = True, chunk: int | None = None, in_parts: bool = False) -> Call:
    """The spiking network, with all of the batch or parts of it at once."""
    snn, images = spiking_model(case.folder, case.device), case.images()
    parts = images.split(case.part or case.batch) if in_parts else (images,)

    def run() -> Tensor:
        with nullcontext() if fused else eager():
            return torch.cat([snn(part, case.timesteps, chunk=chunk) for part in parts], 1)

    return run


class MultiStep(nn.Module):
    """A neuron of SpikingJelly, which sees ``[T, B, ...]``, in a network in which time is in the batch dimension."""

    def __init__(self, node: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.node, self.timesteps = node, timesteps

    def forward(self, x: Tensor) -> Tensor:
        return self.node(x.unflatten(0, (self.timesteps, -1))).flatten(0, 1)


def integrate_and_fire(case: Case) -> Call:
    """The network with SpikingJelly's neurons in place of ours."""
    from spikingjelly.activation_based import functional, neuron

    network = structure(timm_model(case.model), RECIPES["faithful"], IMAGE).network
    for name, _ in list(neurons(network)):
        network.set_submodule(name, MultiStep(neuron.IFNode(v_reset=None, step_mode="m"), case.timesteps))
    network, images = network.to(case.device), case.images()

    def run() -> Tensor:
        functional.reset_net(network)
        frames = images.expand(case.timesteps, *images.shape).flatten(0, 1)
        return network(frames).unflatten(0, (case.timesteps, -1))

    return run


def spatio_temporal(case: Case) -> Call:
    """SpikingJelly's conversion of torchvision's ViT."""
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import Converter, STATransformerRecipe

    calibration = torch.randn(4, *IMAGE).to(case.device)
    recipe = STATransformerRecipe([calibration], case.timesteps, mode="spiking_encoder", threshold_scale=0.5)
    network = Converter(recipe).convert(torchvision_model(case.model).to(case.device)).eval()
    functional.set_step_mode(network, "m")
    images = case.images()

    def run() -> Tensor:
        functional.reset_net(network)
        frames = images.new_zeros(case.timesteps, *images.shape)
        frames[0] = images
        return network(frames).cumsum(0)

    return run


ANN, TORCHVISION, PARTS, IF, STA = "ANN", "torchvision's ANN", "fused, in parts", "SpikingJelly IF", "SpikingJelly STA"
WAYS: dict[str, Callable[[Case], Call]] = {
    ANN: ann,
    "fused": converted,
    "fused, chunk=1": partial(converted, chunk=1),
    "eager": partial(converted, fused=False),
    "eager, chunk=1": partial(converted, fused=False, chunk=1),
    PARTS: partial(converted, in_parts=True),
    TORCHVISION: partial(ann, make=torchvision_model),
    IF: integrate_and_fire,
    STA: spatio_temporal,
}


def times(case: Case, ways: list[str], repeats: int) -> dict[str, float]:
    calls = {way: WAYS[way](case) for way in ways}
    with torch.inference_mode():
        return medians(calls, repeats)


def memory_of(case: Case, way: str) -> Memory:
    one, call = WAYS[way](dataclasses.replace(case, batch=1)), WAYS[way](case)
    with torch.inference_mode():
        one()  # what stays in memory, such as oneDNN's kernels, is not the batch's
        del one
        return memory(call, case.device)


def compare(case: Case, ways: list[str], repeats: int, threads: int) -> list[dict[str, Any]]:
    """Each way, over its ANN."""
    anns = {way: TORCHVISION if way == STA else ANN for way in ways}
    every = [*dict.fromkeys(anns.values()), *ways]
    took = alone(times, case, every, repeats, threads=threads)
    held = {way: alone(memory_of, case, way, threads=threads) for way in every}
    rows = []
    for way, over in anns.items():
        rows.append(
            {
                "model": case.model, "batch": case.batch, "timesteps": case.timesteps, "way": way,
                "part": case.part if way == PARTS else None, "device": case.device, "repeats": repeats,
                "seconds": took[way], "ann_seconds": took[over], "time_ratio": took[way] / (case.timesteps * took[over]),
                "memory_mb": held[way].added, "ann_memory_mb": held[over].added,
                "memory_ratio": held[way].added / held[over].added,
                "peak_mb": held[way].peak, "ann_peak_mb": held[over].peak, "peak_ratio": held[way].peak / held[over].peak,
            }
        )  # fmt: skip
    return rows


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True)
@click.option("--timesteps", multiple=True, type=int, default=(1, 4, 8, 32), show_default=True)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 32), show_default=True)
@click.option("--way", "ways", multiple=True, type=click.Choice([way for way in WAYS if way not in (ANN, TORCHVISION, PARTS)]))
@click.option("--images-at-once", "part", type=int, help="Also show batches in parts of so many images.")
@click.option("--threads", multiple=True, type=int, default=(1,), show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS / "simulation.json")
def main(
    models: tuple[str, ...], timesteps: tuple[int, ...], batches: tuple[int, ...], ways: tuple[str, ...], part: int | None,
    threads: tuple[int, ...], repeats: int, device: str, output: Path,
) -> None:  # fmt: skip
    """Measure each way (all that are installed unless some are given)."""
    present = [way for way in WAYS if "SpikingJelly" not in way or find_spec("spikingjelly")]
    chosen = [way for way in ways or present if way not in (ANN, TORCHVISION, PARTS)] + ([PARTS] if part else [])
    click.echo(f"{'over the ANN:':43}  {'time / T':14}  {'memory added, MB':18}  peak memory, MB")
    for count, model in product(threads, models):
        machine = alone(describe, threads=count)
        with TemporaryDirectory() as folder:
            alone(convert, model, folder, threads=count)
            for batch, steps in product(batches, timesteps):
                case = Case(model, folder, steps, batch, part, device)
                click.echo(f"{model}, batch {batch}, T = {steps}, threads {count}")
                try:
                    rows = compare(case, chosen, repeats, count)
                except BrokenProcessPool:
                    click.echo("  killed: there is not enough memory for all of these ways", err=True)
                    continue
                save(output, machine, rows, ("model", "batch", "timesteps", "way", "part", "device"))
                for row in rows:
                    time = f"{row['time_ratio']:.2f} ({row['seconds']:.3f} s)"
                    added, peak = (f"{row[f'{kind}_ratio']:.2f} ({row[f'{kind}_mb']:.0f})" for kind in ("memory", "peak"))
                    click.echo(f"  {row['way']:41}  {time:14}  {added:18}  {peak}")


if __name__ == "__main__":
    main()
