"""What small alphabets are measured by: the same network, at the same places, with values rounded to integers of a few bits.

    python benchmarks/quantised.py --model deit_tiny_patch16_224 --weights FILE --data IMAGES --class-map CLASSES --samples 500

T binary spikes of one neuron tell 2^T values apart where they are digits, and T + 1 where they are counted. This is plain
post-training quantisation, to put beside them: wherever a spiking neuron would stand (inputs of all linear layers and
convolutions, and both operands of each product in attention), values are rounded to 2^bits levels at equal distances. Each
channel has its own range, the one of least squared error, found on the calibration images layer by layer, on what the layers
before give that are rounded already. As with recipe ``binary``, inputs of linear layers are rotated. The image has 8 bits, as
is usual. ``W`` is the number of bits of weights, rounded as by ``--weights int4`` (GPTQ).

Each result is added to ``benchmarks/results/quantised_MODEL.json`` as it comes; ``--table`` prints what is there.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from faithful import RESULTS, sources, takes_subject
from schedules import last_readout, scored
from torch import Tensor, nn

from vit2snn.calibration.channels import rest
from vit2snn.convert import RECIPES, load_model, to_spiking
from vit2snn.data import batches, prepared
from vit2snn.spiking import CodedNeuron

IMAGE_BITS = 8
SHRUNK = torch.linspace(1, 0.2, 33)
"""Shares of a channel's range among which the one of least squared error is taken."""
ROWS = {"A3": (3, None), "A4": (4, None), "A5": (5, None), "A6": (6, None), "W3 A3": (3, 3), "W4 A4": (4, 4)}
"""Bits of values, and of weights."""


def rounded(x: Tensor, least: Tensor, step: Tensor, bits: int) -> Tensor:
    """``x`` by the nearest of 2^bits levels."""
    return ((x - least) / step).round_().clamp_(0, 2**bits - 1).mul_(step).add_(least)


class Rounded:
    """A forward hook that finds the range of each channel on the first batch that it sees, and rounds from there on."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.levels: tuple[Tensor, Tensor] | None = None

    def __call__(self, neuron: nn.Module, inputs: Any, x: Tensor) -> Tensor:
        assert isinstance(neuron, CodedNeuron)
        self.levels = self.levels or self.best(x, rest(x, neuron.axes))
        return rounded(x, *self.levels, self.bits)

    def best(self, x: Tensor, samples: list[int]) -> tuple[Tensor, Tensor]:
        """The lowest level and the distance of levels, of each channel, whose values lie along the axes ``samples``."""
        least = x.amin(samples, keepdim=True)
        span = (x.amax(samples, keepdim=True) - least).clamp_min(1e-12)
        fewest, found = torch.full_like(least, torch.inf), (least, span)
        for share in SHRUNK:
            # Where all values have one sign, as those of softmax, the range shrinks from the other end.
            low, step = torch.where(least >= 0, least, least * share), span * share / (2**self.bits - 1)
            errors = (rounded(x, low, step, self.bits) - x).square().mean(samples, keepdim=True)
            better = errors < fewest
            fewest = torch.where(better, errors, fewest)
            found = torch.where(better, low, found[0]), torch.where(better, step, found[1])
        return found


def table(path: Path) -> str:
    """The rows as Markdown."""
    lines = ["| bits | top-1 | agreement | error |", "| --- | --- | --- | --- |"]
    for row in json.loads(path.read_text()):
        lines.append(f"| {row['row']} | {row['top1']:.1f} | {row['agreement']:.1f} | {row['relative_error']:.2g} |")
    return "\n".join(lines)


@click.command()
@takes_subject
@click.option("--row", "rows", multiple=True, type=click.Choice(list(ROWS)), default=list(ROWS))
@click.option("--calibration", default=128, show_default=True)
@click.option("--samples", default=1000, show_default=True, help="Images that are scored.")
@click.option("--batch-size", default=16, show_default=True)
@click.option("--table", "only_table", is_flag=True)
def main(
    model: str, weights: str | None, data: str | None, class_map: str | None, rows: tuple[str, ...], calibration: int,
    samples: int, batch_size: int, only_table: bool,
) -> None:  # fmt: skip
    torch.set_flush_denormal(True)
    path = RESULTS / f"quantised_{model.split('.')[0]}.json"
    for name in () if only_table else rows:
        bits, weight_bits = ROWS[name]
        started = time.time()
        ann = load_model(model, weights)
        (calibrating, count), (scoring, total) = sources(ann, data, class_map, calibration, samples)
        images = torch.stack([sample.image for sample in prepared(ann, calibrating, count=count)])
        exact = RECIPES["exact"].changed(rotation=True, weight_bits=weight_bits)
        network = to_spiking(ann, exact, list(images.split(32)))
        hooks = [
            neuron.register_forward_hook(Rounded(bits if number else IMAGE_BITS))
            for number, neuron in enumerate(network.neurons().values())
        ]
        with torch.inference_mode():
            network(images)
        unseen = prepared(ann, scoring, count=total, exclude=network.calibrated_on)
        found = scored(partial(last_readout, network), ann, batches(unseen, batch_size))
        for hook in hooks:
            hook.remove()
        row = {"row": name, "calibration": calibration, "images": total, "seconds": round(time.time() - started), **found}
        row = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
        kept = [old for old in json.loads(path.read_text()) if old["row"] != name] if path.exists() else []
        kept = sorted([*kept, row], key=lambda old: list(ROWS).index(old["row"]))
        path.write_text("[\n  " + ",\n  ".join(json.dumps(old) for old in kept) + "\n]\n")
        click.echo(json.dumps(row))
    click.echo(table(path))


if __name__ == "__main__":
    main()
