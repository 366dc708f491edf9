"""Time and memory of the zoo's forward pass, beside an ordinary ViT of the same size measured in the same run.

    OMP_NUM_THREADS=1 python benchmarks/zoo.py > benchmarks/results/zoo.json

Each model runs in a process of its own, alternating with timm's ``vit_small_patch16_224`` on the same images. Prints a table to
stderr and JSON to stdout.
"""

from __future__ import annotations

import json
from typing import Any

import click
from machine import alone, describe, medians, memory

MODELS = ("qkformer_10_384", "spikformer_8_384", "sdt_8_384", "spikingformer_8_384", "semm_spikformer_8_512")
ANN = "vit_small_patch16_224"


def measure(name: str, batch: int, repeats: int, chunk: int | None) -> dict[str, Any]:
    """Median seconds of model and ViT, taken in turns, and the memory that a forward pass adds to the process at its peak."""
    import timm
    import torch

    import vit2snn.zoo

    model: Any = timm.create_model(name)
    ann = timm.create_model(ANN).eval()
    x = torch.rand(batch, 3, 224, 224)
    with torch.inference_mode():
        ann(x)
        model.eval().readout(x, chunk=chunk)  # what stays in memory, such as oneDNN's kernels, is not the pass's
        added = memory(lambda: model.readout(x, chunk=chunk)).added
        with torch.no_grad():
            model.train()(x)  # statistics of normalisation with which neurons fire
        model.eval()
        snn, vit = medians({"snn": lambda: model.readout(x, chunk=chunk), "ann": lambda: ann(x)}, repeats).values()
    assert name in vit2snn.zoo.VARIANTS
    return {
        "model": name, "timesteps": model.timesteps, "batch": batch, "chunk": chunk, "threads": torch.get_num_threads(),
        "seconds": round(snn, 3), "vit_small_seconds": round(vit, 3), "multiple_of_vit_small": round(snn / vit, 2),
        "memory_mb": round(added),
    }  # fmt: skip


@click.command()
@click.option("--batch", default=2, show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(batch: int, repeats: int) -> None:
    """Measure all models, with all timesteps at once and one by one."""
    rows = []
    for name in MODELS:
        for chunk in (None, 1):
            row = alone(measure, name, batch, repeats, chunk)
            rows.append(row)
            text = f"{row['seconds']:.2f} s, {row['multiple_of_vit_small']:.1f} x {ANN}, {row['memory_mb']} MB"
            click.echo(f"{name:24} T={row['timesteps']} chunk={row['chunk'] or 'all'}: {text}", err=True)
    click.echo(json.dumps({"machine": describe(), "ann": ANN, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
