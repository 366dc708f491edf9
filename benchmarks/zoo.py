"""Time and memory of the zoo's forward pass, beside an ordinary ViT of the same size measured in the same run.

    OMP_NUM_THREADS=1 python benchmarks/zoo.py > benchmarks/results/zoo.json

Each model runs in a process of its own, alternating with timm's ``vit_small_patch16_224`` on the same images. Prints a table to
stderr and JSON to stdout.
"""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

MODELS = ("qkformer_10_384", "spikformer_8_384", "sdt_8_384", "spikingformer_8_384", "semm_spikformer_8_512")
ANN = "vit_small_patch16_224"


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def status(entry: str) -> int:
    """An entry of Linux's account of this process, in kB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1])


def measure(name: str, batch: int, repeats: int, chunk: int | None) -> dict[str, Any]:
    """Median seconds of model and ViT, taken in turns, and the memory that a forward pass adds to the process at its peak."""
    import timm
    import torch

    import vit2snn.zoo

    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    model: Any = timm.create_model(name)
    ann = timm.create_model(ANN).eval()
    x = torch.rand(batch, 3, 224, 224)
    with torch.inference_mode():
        ann(x)
        model.eval().readout(x, chunk=chunk)  # what stays in memory, such as oneDNN's kernels, is not the pass's
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = status("VmRSS")
        model.readout(x, chunk=chunk)
        memory = (status("VmHWM") - before) / 1024
        with torch.no_grad():
            model.train()(x)  # statistics of normalisation with which neurons fire
        model.eval()
        times: list[list[float]] = [[], []]
        for _ in range(repeats):
            times[0].append(seconds(lambda: model.readout(x, chunk=chunk)))
            times[1].append(seconds(lambda: ann(x)))
    assert name in vit2snn.zoo.VARIANTS
    snn, vit = map(statistics.median, times)
    return {
        "model": name, "timesteps": model.timesteps, "batch": batch, "chunk": chunk, "threads": torch.get_num_threads(),
        "seconds": round(snn, 3), "vit_small_seconds": round(vit, 3), "multiple_of_vit_small": round(snn / vit, 2),
        "memory_mb": round(memory),
    }  # fmt: skip


@click.command()
@click.option("--batch", default=2, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--model", "one", hidden=True, help="Measure this model in this process.")
@click.option("--chunk", type=int, hidden=True)
def main(batch: int, repeats: int, one: str | None, chunk: int | None) -> None:
    """Measure all models, with all timesteps at once and one by one."""
    if one:
        click.echo(json.dumps(measure(one, batch, repeats, chunk)))
        return
    rows = []
    for name in MODELS:
        for arguments in ([], ["--chunk", "1"]):
            command = [sys.executable, __file__, "--batch", str(batch), "--repeats", str(repeats), "--model", name, *arguments]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append(row)
            text = f"{row['seconds']:.2f} s, {row['multiple_of_vit_small']:.1f} x {ANN}, {row['memory_mb']} MB"
            click.echo(f"{name:24} T={row['timesteps']} chunk={row['chunk'] or 'all'}: {text}", err=True)
    click.echo(json.dumps({"machine": f"{platform.machine()}, {platform.system()}", "ann": ANN, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
