"""The memory at the peak of `vit2snn convert`, by the number of images.

    python benchmarks/memory.py --data IMAGES --model vit_base_patch16_224 --recipe faithful --samples 32 --samples 512

The command itself is run, on a model with random weights, in a process of its own; the peak is all that the process had
resident, interpreter and libraries too. A fit may be cut to fewer ``--updates`` of each branch, which take
less time. Each row is added to ``benchmarks/results/memory.json`` as it comes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import timm
from machine import RESULTS, describe, save
from safetensors.torch import save_file

CONVERT = """
import sys
from vit2snn.convert import fit_branches, fitting
fit_branches.STEPS = fitting.STEPS = int(sys.argv.pop(1)) or fitting.STEPS
from vit2snn.cli import main
main()
"""


def convert(model: str, recipe: str, samples: int, data: Path, updates: int, batch_size: int) -> tuple[float, float]:
    """Peak memory in GB and seconds of one conversion.

    Raises:
        ClickException: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.safetensors"
        save_file(timm.create_model(model).state_dict(), weights)
        options = {
            "--checkpoint": weights, "--data": data, "--recipe": recipe, "--samples": samples, "--batch-size": batch_size,
            "-o": Path(folder) / "snn",
        }  # fmt: skip
        command = [sys.executable, "-c", CONVERT, str(updates), "convert", model]
        started = time.time()
        process = subprocess.Popen([*command, *(str(part) for pair in options.items() for part in pair)])
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise click.ClickException(f"the conversion of {model} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024 / 1e9, time.time() - started


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--model", default="vit_base_patch16_224", show_default=True)
@click.option("--recipe", "recipes", multiple=True, default=("faithful",), show_default=True)
@click.option("--samples", "counts", multiple=True, type=int, default=(32, 128, 512), show_default=True)
@click.option("--batch-size", default=32, show_default=True, help="Of the command, whose default this is.")
@click.option("--updates", default=0, help="Of each branch of a fit; 0 for all.")
def main(data: Path, model: str, recipes: tuple[str, ...], counts: tuple[int, ...], batch_size: int, updates: int) -> None:
    for recipe in recipes:
        for count in counts:
            peak, seconds = convert(model, recipe, count, data, updates, batch_size)
            row = {
                "model": model, "recipe": recipe, "samples": count, "batch_size": batch_size, "updates": updates,
                "peak_gb": peak, "seconds": seconds,
            }  # fmt: skip
            save(RESULTS / "memory.json", describe(), [row], ("model", "recipe", "samples", "batch_size", "updates"))
            click.echo(f"{model} {recipe}, {count} images: {peak:.2f} GB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
