"""What is replaced in which families of timm: structure found, and what Q-K attention in its place loses, with random weights.

    python benchmarks/structures.py                      # all: half a minute to some minutes a family on one core
    python benchmarks/structures.py swin_transformer     # some, by the name of timm's module
    python benchmarks/structures.py --no-fit             # what is found; fits that are on record stay there
    python benchmarks/structures.py --table              # what is on record

The models are those of `coverage.py`: the smallest of each family, with weights by which every part matters, on random images.

* ``blocks``, ``attention``, ``activations``, ``norms``: what is found, and ``left``: what nothing takes the place of;
* ``kept``: relative error of the logits with a softmax in the place of each softmax (below 1e-5: attention is found where it is
  computed, and all else is left to the family's own code);
* of each recipe: ``blocks`` that get new branches, and the relative error of the logits on other images than it was fitted to,
  with analog neurons: with substitutes as they ``start``, and ``fitted`` block by block.

A fit here has 64 updates a block of 8 images each, instead of 200 of 16, on 64 images, which are noise that is smooth. Of the
logits, the mean over all scored images is left out, since it is most of them: a network that tells no image from another has an
error of 1.
"""

from __future__ import annotations

import copy
import gc
import json
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import timm
import torch
from coverage import NEIGHBOURS, TRANSFORMERS, enliven, error, families, made
from torch import Tensor, nn
from torch.nn import functional as F

from vit2snn.convert import RECIPES, Coded, SpikingModel, Structure, fit_branches, fit_parts, fitting, to_spiking
from vit2snn.convert.anatomy import Anatomy, anatomy
from vit2snn.convert.blocks import BlockPlan, is_new
from vit2snn.convert.lines import replaced_parts, straighten
from vit2snn.errors import Vit2SnnError

RESULTS = Path(__file__).parent / "results" / "structures.json"
STRUCTURES = ("qkformer", "hybrid")
UPDATES = 64
SHOWN, SCORED, BATCH = 64, 8, 8
COARSE = 4
"""Pixels a side of the noise that is smooth."""


class Exact(nn.Softmax):
    """In place of a `RectifiedSoftmax`."""

    def __init__(self, heads: int, prefix: int, dim: int) -> None:
        super().__init__(dim)

    def forward(self, input: Tensor, *others: Any, **more: Any) -> Tensor:
        """Whatever other arguments the call has."""
        return super().forward(input)


def kept(model: nn.Module, found: Anatomy, images: Tensor) -> float:
    """The error with everything found and nothing changed."""
    structure = Structure("qk-relu")
    parts = replaced_parts(found, [BlockPlan(block.name, "qk-relu", "mlp") for block in found.blocks], structure)
    network = copy.deepcopy(model)
    with patch("vit2snn.convert.lines.RectifiedSoftmax", Exact):
        straighten(network, parts, structure)
    return error(network(images), model(images))


def lost(snn: SpikingModel, images: Tensor) -> float:
    """The relative error of what varies from image to image."""
    found, wanted = snn(images)[-1], snn.ann(images)
    return error(found - found.mean(0), wanted - wanted.mean(0))


def noise(images: int, size: tuple[int, ...]) -> Tensor:
    """Images of smooth and of white noise."""
    coarse = torch.randn(images, size[0], COARSE, COARSE)
    return F.interpolate(coarse, size=size[1:], mode="bicubic") + torch.randn(images, *size) / 4


@torch.no_grad()
def measured(model: nn.Module, size: tuple[int, ...], fit: bool) -> dict[str, Any]:
    """The figures of one model, with or without fits."""
    torch.manual_seed(0)
    shown, scored = noise(SHOWN, size), noise(SCORED, size)
    enliven(model, shown[:SCORED])
    found = anatomy(model, size)
    functions = [function for block in found.blocks for function in block.functions] + list(found.loose)
    row: dict[str, Any] = {
        "side": size[-1],
        "blocks": len(found.blocks),
        **{f"{role}s": sum(f.role == role for f in functions) for role in ("attention", "mlp", "norm")},
        "left": list(found.left),
    }
    if row["attentions"]:
        row["kept"] = kept(model, found, scored)
    for name in STRUCTURES if fit else ():
        recipe = RECIPES[name].changed(timesteps=1, spikes=Coded(levels=0))
        started = to_spiking(model, recipe.changed(refit="none"), shown.split(BATCH))
        fitted = to_spiking(model, recipe, shown.split(BATCH))
        row[name] = {
            "blocks": sum(is_new(block.attention) or is_new(block.mlp) for block in fitted.plan.blocks),
            "started": lost(started, scored),
            "fitted": lost(fitted, scored),
        }
    return row


def recognised(row: dict[str, Any]) -> bool:
    """Whether attention is found, nothing is left, and it is found where it is computed."""
    return bool(row.get("attentions") and not row["left"] and row["kept"] < 1e-5)


def fits(row: dict[str, Any], recipe: str) -> bool:
    """Whether a fit leaves less error than it starts from."""
    return recipe in row and row[recipe]["fitted"] < row[recipe]["started"]


def table(rows: dict[str, dict[str, Any]]) -> str:
    """All families, and how many are recognised and fitted."""
    lines = [
        "| family | model | blocks | attentions, activations, norms | left | kept | `qkformer`: blocks; started, fitted | "
        "`hybrid`: blocks; started, fitted |",
        "| --- |" + " --- |" * 7,
    ]
    for family, row in sorted(rows.items()):
        kept = f"{row['kept']:.0e}" if "kept" in row else ""
        fits_of = [
            f"{row[name]['blocks']}; {row[name]['started']}, {row[name]['fitted']}" if name in row else row.get("refused", "")
            for name in STRUCTURES
        ]
        found = [str(row.get(role, "")) for role in ("attentions", "mlps", "norms")]
        cells = [row["model"], str(row.get("blocks", "")), ", ".join(found), str(len(row.get("left", ()))), kept, *fits_of]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    counts = {
        "families": len(rows),
        "with attention": sum(bool(row.get("attentions")) for row in rows.values()),
        "recognised": sum(map(recognised, rows.values())),
        **{f"fitted with {name}": sum(fits(row, name) for row in rows.values()) for name in STRUCTURES},
    }
    return "\n".join(
        [*lines, "", ", ".join(f"{count} {what}" for what, count in counts.items()) + f", timm {timm.__version__}."]
    )


@click.command()
@click.argument("modules", nargs=-1, type=click.Choice([*TRANSFORMERS, *NEIGHBOURS]))
@click.option("--fit/--no-fit", default=True, show_default=True)
@click.option("--table", "only_table", is_flag=True)
def main(modules: tuple[str, ...], fit: bool, only_table: bool) -> None:
    warnings.filterwarnings("ignore")
    torch.set_flush_denormal(True)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    fit_branches.STEPS = fitting.STEPS = UPDATES
    fit_branches.BATCH = fit_parts.BATCH = fitting.BATCH = BATCH
    for family, name in ({} if only_table else families(modules or (*TRANSFORMERS, *NEIGHBOURS))).items():
        torch.manual_seed(0)
        started = time.time()
        before = rows.get(family, {})
        row: dict[str, Any] = {"model": name} | {key: before[key] for key in STRUCTURES if key in before and not fit}
        try:
            model, size, arguments = made(family, name)
            row |= {"arguments": arguments} | measured(model, size, fit)
        except (Vit2SnnError, RuntimeError, ValueError) as refusal:
            row["refused"] = str(refusal).splitlines()[0]
        if fit:
            row["seconds"] = round(time.time() - started)
        gc.collect()
        rows[family] = row
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        click.echo(f"{family} {json.dumps(row)}")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
