"""Whether the figures by which plans of substitutes are compared foretell those of the converted networks.

    python benchmarks/plans.py --samples 128 --most 14

`vit2snn plan demo` measures every kind of branch in every block by itself. Here the plans of its front, and those of one kind
of branch in all blocks, are carried out by `vit2snn convert` (re-fitted as the recipe says, not fine-tuned) and scored by
`vit2snn evaluate` on the embedded validation images. The table has, for each plan, what was foretold (energy of the branches
over the ANN's, mean error of a branch) and what became of it (energy of the whole network over the ANN's, relative error of the
logits, top-1). Kendall's tau between the two comes with a bootstrap interval of 95 % over plans (SciPy's percentile method).
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from click.testing import CliRunner
from machine import RESULTS, describe, rounded
from ranks import tau

from vit2snn.cli import cli
from vit2snn.convert import Recipe


def run(*arguments: Any) -> Any:
    """What a command prints as JSON."""
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def carried_out(plan: dict[str, Any], samples: int, folder: Path) -> dict[str, float]:
    """Top-1 in per cent, relative error and energy of the network that a plan gives, after all timesteps."""
    chosen = Recipe.from_json(plan["recipe"]).changed(attention=plan["attention"], mlp=plan["mlp"])
    recipe, out = folder / "recipe.json", folder / "snn"
    recipe.write_text(json.dumps(chosen.to_json()))
    run("convert", "demo", "--recipe", recipe, "--samples", samples, "-o", out, "--overwrite")
    last = run("evaluate", out)["snn"][-1]
    return {"top1": last["top1"], "relative_error": last["relative_error"], "network_energy": last["energy"]}


@click.command()
@click.option("--recipe", default="qkformer", show_default=True)
@click.option("--samples", type=int, default=64, show_default=True, help="Images to measure plans on.")
@click.option("--most", type=int, default=100, show_default=True, help="Plans to carry out, those of the front first.")
def main(recipe: str, samples: int, most: int) -> None:
    output = RESULTS / ("plans.json" if recipe == "qkformer" else f"plans_{Path(recipe).stem}.json")
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        document = run("plan", "demo", "--recipe", recipe, "--samples", samples, "-o", Path(folder) / "plans")
        kinds = [(plan["attention"], plan["mlp"]) for plan in document["plans"]]
        others = {name: plan for name, plan in document["uniform"].items() if (plan["attention"], plan["mlp"]) not in kinds}
        plans = {str(number): plan for number, plan in enumerate(document["plans"])} | others
        click.echo(f"{'plan':24} {'energy':>7} {'error':>7} {'energy':>8} {'error':>7} {'top-1':>6}")
        for name, plan in list(plans.items())[:most]:
            known = plan | {"recipe": document["recipe"]}
            row = {"plan": name, "energy": plan["energy"], "error": plan["error"]} | carried_out(
                known, 2 * samples, Path(folder)
            )
            rows.append(rounded(row))
            figures = f"{row['energy']:7.3f} {row['error']:7.3f} {row['network_energy']:8.3f} {row['relative_error']:7.3f}"
            click.echo(f"{name:24} {figures} {row['top1']:6.1f}")
    taus = {
        f"{foretold} and {became}": tau(*(np.array([row[column] for row in rows]) for column in (foretold, became)))
        for foretold, became in (("energy", "network_energy"), ("error", "relative_error"), ("error", "top1"))
    }
    for name, found in taus.items():
        click.echo(f"Kendall's tau of {name}: {found['tau']:.2f} [{found['low']:.2f}, {found['high']:.2f}]")
    result = {"machine": describe(), "rows": rows, "tau": {name: rounded(found) for name, found in taus.items()}}
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
