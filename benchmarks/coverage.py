"""Which families of timm convert: the smallest model of each, with random weights and random images.

    python benchmarks/coverage.py                      # all, in about two hours on one core
    python benchmarks/coverage.py swin_transformer     # some, by the name of timm's module
    python benchmarks/coverage.py --table              # what is on record

Each is converted and checked in four ways:

* ``exact``: relative error of the logits with analog neurons (at most 1e-4);
* ``error``: that of the recipe `faithful` at T = 1, 2, 4, 8, with 8 levels instead of 16 (falling, and below 2 % at the end);
* ``missed``: operations, as torch dispatches them, that are not driven by neurons on all operands, and ``uncounted``:
  multiply-accumulates that the plan does not know (none);
* ``alone``: how far the logits of an image differ if it is run with others, in float64 (not at all: time and images are not
  mixed up).

The scored images are others than those for calibration, which are 8; where a model does not pass so, 32; and then 32 with the
recipe's 16 levels. Weights are drawn so that every part matters: layer scales are near 1, batch normalisations know the
statistics of 32 images. (Their own scale is below 1 and their offset positive: a deep random network of ReLUs and
normalisations is chaotic otherwise, and rounding alone makes an error of 1e-5.)
Images have 128 pixels a side where a model takes them; the largest models are made with fewer blocks.
"""

from __future__ import annotations

import copy
import gc
import itertools
import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

import click
import timm
import torch
from torch import Tensor, nn

from vit2snn.convert import RECIPES, SpikingModel, plan, to_spiking
from vit2snn.convert.conversion import structure
from vit2snn.errors import Vit2SnnError
from vit2snn.measure import dispatched
from vit2snn.tracing.calls import ELEMENTWISE

RESULTS = Path(__file__).parent / "results" / "coverage.json"
TRANSFORMERS = (
    "beit", "byoanet", "cait", "coat", "convit", "cpubone", "crossvit", "csatv2", "davit", "deepseek_vit", "deit",
    "edgenext", "efficientformer", "efficientformer_v2", "efficientvim", "efficientvit_mit", "efficientvit_msra", "eva",
    "fastvit", "focalnet", "gcvit", "gemma4_vit", "hiera", "hieradet_sam2", "iformer", "levit", "lowformer", "maxxvit",
    "metaformer", "mlp_mixer", "mobilenetv5", "mobilevit", "mvitv2", "naflexvit", "nest", "nextvit", "pit", "pvt_v2",
    "qwen3_vit", "shvit", "swiftformer", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit",
    "tnt", "twins", "visformer", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos",
    "vision_transformer_sam", "vitamin", "volo", "xcit",
)  # fmt: skip
NEIGHBOURS = ("convnext", "mambaout", "repvit", "sequencer")
"""Without attention; their smallest models are run as well."""

SMALLER: dict[str, dict[str, Any]] = {
    "beit": {"depth": 6},
    "deepseek_vit": {"img_size": 112, "depth": 3},
    "eva": {"depth": 6},
    "gemma4_vit": {"img_size": 144, "depth": 3},
    "naflexvit": {"depth": 3},
    "qwen3_vit": {"depth": 3},
    "vision_transformer": {"depth": 6},
    "vision_transformer_sam": {"depth": 6},
}
SIDE = 128
TRIES = ((8, 8), (32, 8), (32, 16))
"""Images for calibration, and levels: the next where a model does not pass with those before."""
MOST = max(images for images, _ in TRIES)
BATCH = 4


def families(modules: tuple[str, ...]) -> dict[str, str]:
    """The smallest model of each family; they are told apart by timm's module and the name's first part."""
    smallest: dict[str, tuple[int, str]] = {}
    for module in modules:
        for name in timm.list_models(module=module, exclude_filters="test_*"):
            prefix = re.sub(r"\d{2,}[a-z]+$", "", name.split("_")[0])
            with torch.device("meta"):
                size = sum(p.numel() for p in timm.create_model(name).parameters())
            family = f"{module}: {prefix}"
            smallest[family] = min(smallest.get(family, (size, name)), (size, name))
    return {family: name for family, (_, name) in smallest.items()}


def made(family: str, name: str) -> tuple[nn.Module, tuple[int, ...], dict[str, Any]]:
    """A model with random weights, the size of its images, and the arguments that keep it small.

    Images have 128 pixels a side where the model takes them, and as many as its configuration says elsewhere.
    """
    smaller = SMALLER.get(family.partition(":")[0], {})
    side = smaller.get("img_size", SIDE)
    for arguments in ({"img_size": SIDE} | smaller, smaller):
        try:
            model = timm.create_model(name, **arguments).eval()
            plan(model, RECIPES["exact"], (3, side, side))
        except (Vit2SnnError, TypeError, AssertionError):
            continue
        return model, (3, side, side), arguments
    model = timm.create_model(name, **smaller).eval()
    return model, timm.data.resolve_model_data_config(model)["input_size"], smaller


@torch.no_grad()
def enliven(model: nn.Module, images: Tensor) -> None:
    """Weights and statistics with which every part matters."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)
        else:
            parameter.uniform_(0.5, 1.5)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.weight.uniform_(0.2, 0.6)
        norm.bias.uniform_(0, 0.5)
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in images.split(BATCH) if norms else ():
        model(batch)
    model.eval()


def error(logits: Tensor, expected: Tensor) -> float:
    """Relative error, rounded."""
    return float(f"{float((logits - expected).norm() / expected.norm()):.2g}")


@torch.no_grad()
def checked(model: nn.Module, size: tuple[int, ...], calibration: int, levels: int, images: int) -> dict[str, Any]:
    """The figures of one model."""
    torch.manual_seed(0)
    many, scored = torch.randn(MOST, *size), torch.randn(images, *size)
    enliven(model, many)
    shown = many[:calibration]
    exact = structure(model, RECIPES["exact"], size)
    found = dispatched(exact, scored[0])
    matrix = [operation for operation in found if not operation.elementwise]
    planned = [call for module in exact.plan.modules for call in module.calls]
    norms = {call.module for call in planned if call.function == "rms_norm"}  # torch makes products of signals of it
    missed = [o for o in found if not o.driven and not (o.elementwise and o.module in norms)]
    snn = to_spiking(model, RECIPES["faithful"].changed(timesteps=8, levels=levels), shown.split(BATCH))
    expected = model(scored)
    logits = snn(scored, chunk=1)
    return {
        "calibration": calibration,
        "levels": levels,
        "side": size[-1],
        "gmacs": float(f"{exact.plan.macs / 1e9:.3g}"),
        "operations": len(matrix),
        "gates": sum(call.macs > 0 and call.function in ELEMENTWISE for call in planned),
        "missed": [f"{o.module}: {o.function}" for o in missed],
        "uncounted": sum(o.macs for o in matrix) - sum(c.macs for c in planned if c.function not in ELEMENTWISE),
        "exact": error(exact(scored, 1)[0], expected),
        "error": {t: error(logits[t - 1], expected) for t in (1, 2, 4, 8)},
        "alone": alone(snn, scored.double()),
    }


def alone(snn: SpikingModel, images: Tensor) -> float:
    """The relative difference between an image's logits in a batch and on its own, in float64."""
    snn.double()
    together, single = snn(images, 2), snn(images[:1], 2, chunk=1)
    return error(together[:, :1], single)


def passes(row: dict[str, Any]) -> bool:
    """Whether a model meets all bars."""
    if "error" not in row:
        return False
    errors = list(row["error"].values())
    falls = all(later < earlier for earlier, later in itertools.pairwise(errors))
    driven = not row["missed"] and row["uncounted"] == 0
    return bool(row["exact"] < 1e-4 and falls and errors[-1] < 0.02 and driven and row["alone"] < 1e-6)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """All families, and how many pass."""
    lines = [
        "| family | model | GMACs | operations (gates) | exact | images, levels | error at T = 1, 2, 4, 8 | missed | passes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for family, row in sorted(rows.items()):
        arguments = "".join(f", {name} {value}" for name, value in row["arguments"].items() if name != "img_size")
        if "refused" in row:
            lines.append(f"| {family} | {row['model']}{arguments} | | | | | | | no: {row['refused']} |")
            continue
        errors = ", ".join(f"{100 * value:{'.2g' if value < 1 else '.0f'}}" for value in row["error"].values())
        cells = (
            f"{row['gmacs']} | {row['operations']} ({row['gates']}) | {row['exact']:.0e} | "
            f"{row['calibration']}, {row['levels']} | {errors} | "
            f"{len(row['missed'])} | "
            f"{'yes' if passes(row) else 'no'}"
        )
        lines.append(f"| {family} | {row['model']}{arguments} | {cells} |")
    transformers = [family for family in rows if family.partition(":")[0] in TRANSFORMERS]
    good = sum(passes(rows[family]) for family in transformers)
    return "\n".join([*lines, "", f"{good} of {len(transformers)} families of transformers pass, timm {timm.__version__}."])


@click.command()
@click.argument("modules", nargs=-1, type=click.Choice([*TRANSFORMERS, *NEIGHBOURS]))
@click.option("--images", default=4, show_default=True, help="Random images that are scored.")
@click.option("--table", "only_table", is_flag=True)
def main(modules: tuple[str, ...], images: int, only_table: bool) -> None:
    warnings.filterwarnings("ignore")
    torch.set_flush_denormal(True)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for family, name in ({} if only_table else families(modules or (*TRANSFORMERS, *NEIGHBOURS))).items():
        torch.manual_seed(0)
        started = time.time()
        row: dict[str, Any] = {"model": name, "arguments": {}}
        try:
            model, size, row["arguments"] = made(family, name)
            for calibration, levels in TRIES:
                if not passes(row):
                    row |= checked(copy.deepcopy(model), size, calibration, levels, images)
        except (Vit2SnnError, RuntimeError, ValueError) as refusal:
            row["refused"] = str(refusal).splitlines()[0]
        row["seconds"] = round(time.time() - started)
        gc.collect()
        rows[family] = row
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        click.echo(f"{'passes' if passes(row) else 'FAILS '} {family} {json.dumps(row)}")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
