"""What a GPU makes of it, in minutes: parity with the CPU, time and memory of networks, neurons, conversion, and training.

    python benchmarks/gpu.py --minutes 8 -o FILE
    python benchmarks/gpu.py --device cpu --quick -o FILE     # a little of everything, to see that it runs

Parts, in this order; each may be chosen by ``--part``:

* ``parity``: each recipe converts the embedded model on the CPU and on the GPU (substitutes by ridge regression): the
  largest relative difference of logits, the images of another class, the largest relative difference of thresholds; and the
  tests of the kernels. TF32 is off.
* ``networks``: time and memory over T passes of the ANN; see `networks`.
* ``neurons``: neurons over a copy of what they read; see `neurons`.
* ``conversion``: seconds of a faithful conversion; see `calibration`.
* ``training``: updates per second; see `training`.

Each part has a share of the minutes, and what one leaves goes to the next. What has no time left, no memory, or fails is a row
that says so. Rows are written as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from machine import RESULTS, describe, rounded, save
from networks import networks
from neurons import Sizes, measurements
from parity import parity
from parts import Budget, Row, Setting, attempt, no_time
from training import training

import calibration
from vit2snn.spiking import prepare_process

LARGE = Sizes((4, 2**24), ((4, 256, 197, 768), (4, 64, 12, 197, 197)))
SMALL = Sizes((4, 2**12), ((4, 2, 19, 16), (4, 2, 3, 19, 19)))
OFTEN = 9  # repeats
CONVERSION = 40  # seconds that are a guess, without which it is not begun


def neurons(setting: Setting, budget: Budget) -> Iterator[Row]:
    """A row for each neuron, shape and type."""
    sizes, repeats = (SMALL, 1) if setting.quick else (LARGE, OFTEN)
    for name, dtype in setting.types.items():
        for number, call in enumerate(measurements(sizes, setting.device, dtype, repeats), start=1):
            case = f"{name}, measurement {number}"
            if not budget.left:
                yield no_time(case, 1, budget)
                continue
            found: list[Row] = []
            outcome = attempt(case, lambda call=call, found=found: {"rows": found.extend(call())})
            for row in found:
                kept = ("repeats", "milliseconds", "gb_per_second", "share", "failed")
                figures = {kind: row[kind] for kind in kept if kind in row}
                yield {"case": f"{row['neuron']}, {name}, {row['shape']}"} | figures
            if "rows" not in outcome:
                yield outcome


def conversion(setting: Setting, budget: Budget) -> Iterator[Row]:
    """The seconds of ViT-B on 512 images."""
    model, images, batch = ("vit_tiny_patch16_224", 4, 2) if setting.quick else ("vit_base_patch16_224", 512, 64)
    case = f"{model}, faithful, {images} images, batch {batch}"
    if budget.left < CONVERSION:
        yield no_time(case, CONVERSION, budget)
        return
    yield attempt(case, lambda: calibration.measure(model, images, batch, "faithful", setting.device)[1])


PARTS: Mapping[str, tuple[Callable[[Setting, Budget], Iterator[Row]], float]] = {
    "parity": (parity, 2.0), "networks": (networks, 3.5), "neurons": (neurons, 0.5), "conversion": (conversion, 0.75),
    "training": (training, 0.75),
}  # fmt: skip
"""Each with the minutes that it gets of 7.5."""


def rows_of(part: str, setting: Setting, budget: Budget) -> Iterator[Row]:
    """The rows of a part, to which its failure belongs."""
    try:
        yield from PARTS[part][0](setting, budget)
    except Exception as error:  # the parts after it are worth measuring
        yield {"case": "all that is missing", "failed": f"{type(error).__name__}: {error}"}


def told(row: Mapping[str, Any]) -> str:
    """A line of the table."""
    return f"  {row['case']:60} " + ", ".join(
        f"{name} {_text(value)}" for name, value in rounded(dict(row)).items() if name != "case"
    )


def _text(value: Any) -> str:
    return " / ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)


@click.command()
@click.option("--part", "chosen", multiple=True, type=click.Choice(list(PARTS)), help="All unless given.")
@click.option("--minutes", default=8.0, show_default=True, help="For all of it.")
@click.option("--device", default="cuda", show_default=True, type=click.Choice(["cuda", "cpu"]))
@click.option("--quick", is_flag=True, help="A little of everything.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS / "gpu.json", show_default=True)
def main(chosen: tuple[str, ...], minutes: float, device: str, quick: bool, output: Path) -> None:
    """Measure, print a table, and write the rows."""
    prepare_process()
    torch.manual_seed(0)
    whole, setting, machine = Budget(60 * minutes), Setting(device, quick), describe()
    remaining = [part for part in PARTS if part in chosen or not chosen]
    click.echo(", ".join(f"{name} {value}" for name, value in machine.items()))
    while remaining:
        part, weights = remaining[0], [PARTS[name][1] for name in remaining]
        budget = whole.share(weights[0] / sum(weights))
        click.echo(f"{part}, {budget.left:.0f} s at most")
        for row in rows_of(part, setting, budget):
            click.echo(told(row))
            save(output, machine, [{"part": part} | row], ("part", "case"))
        remaining.pop(0)


if __name__ == "__main__":
    main()
