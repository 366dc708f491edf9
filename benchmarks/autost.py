"""Whether AutoST's score foretells the accuracy of trained models, at one number of parameters.

    python benchmarks/autost.py

Architectures are drawn from a small space on AutoST's own frame, within a narrow window of parameters, until there are many; of
these, some are taken at even ranks of their score, the extremes included. All are trained on the embedded Fashion-MNIST images,
reduced to 16 pixels, by `vit2snn train`: with the same settings, for the same number of image passes, from several seeds each;
two processes run side by side, with one thread each. The table has score and accuracy on the embedded validation images at the
last timestep, mean over seeds. Kendall's tau between score and accuracy comes with a bootstrap interval of 95 % over
architectures (SciPy's percentile method). Beside it are tau for width and depth, which the score may only stand for.

Also says how long counting one architecture takes and the search with the published budget, in seconds on this machine.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from click.testing import CliRunner
from machine import RESULTS, describe, rounded
from ranks import tau

from vit2snn.cli import cli
from vit2snn.search import SPACES, TASKS, Architecture, Search, Settings, Space, Task, Window, arguments, create, figures
from vit2snn.storage import save_model

TASK = Task(size=16, in_chans=3, num_classes=10, stem="cifar")
SPACE = Space("autost", (64, 80, 96, 112, 128, 160, 192), ((1, 10),), (1, 2, 3, 4, 5), neuron="plif")


def chosen(window: Window, count: int, drawn: int = 3000) -> list[Architecture]:
    """At even ranks of their score, of all that lie within the window among so many drawn ones."""
    random = Random(0)
    within = {a for a in (SPACE.draw(random) for _ in range(drawn)) if window.holds(figures(a, SPACE, TASK))}
    ranked = sorted(within, key=lambda a: (figures(a, SPACE, TASK).score, repr(a)))
    return [ranked[round(i * (len(ranked) - 1) / (count - 1))] for i in range(count)]


def accuracy(architecture: Architecture, seed: int, epochs: int) -> float:
    """Top-1 in per cent of one training."""
    torch.manual_seed(seed)
    with TemporaryDirectory() as folder:
        model, out = Path(folder) / "model", Path(folder) / "trained"
        save_model(create(arguments(architecture, SPACE, TASK), TASK), model)
        options = ["--epochs", epochs, "--batch-size", 32, "--seed", seed, "--lr", 2e-3, "--json", "-o", out]
        result = CliRunner().invoke(cli, ["train", str(model), *map(str, options)])
        assert result.exit_code == 0, result.output
        top1: float = json.loads(result.stdout)["snn"][-1]["top1"]
        return top1


def speed() -> dict[str, float]:
    """Milliseconds to count an architecture that was not counted before, and seconds of the published search."""
    space, task, random = SPACES["autost-tiny"], TASKS["cifar100"], Random(1)
    drawn = [space.draw(random) for _ in range(1000)]
    started = time.perf_counter()
    for architecture in drawn:
        figures(architecture, space, task)
    counted = time.perf_counter()
    window = Window.parse("parameters", "11M-12M")
    search = Search(space, "autost-tiny", [window], Settings(), lambda a: figures(a, space, task))
    while not search.finished:
        search.advance()
    return {"count_ms": counted - started, "search_seconds": time.perf_counter() - counted, "compared": len(search.found)}


@click.command()
@click.option("--params", default="480k-520k", show_default=True)
@click.option("--architectures", default=12, show_default=True)
@click.option("--seeds", default=2, show_default=True)
@click.option("--epochs", default=30, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS / "autost.json")
def main(params: str, architectures: int, seeds: int, epochs: int, output: Path) -> None:
    fast = speed()
    click.echo(f"{fast['count_ms']:.3f} ms to count one, {fast['search_seconds']:.1f} s to compare {fast['compared']}")
    found = chosen(Window.parse("parameters", params), architectures)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        runs = {(a, seed): pool.submit(accuracy, a, seed, epochs) for a in found for seed in range(seeds)}
        rows = []
        for architecture in found:
            top1 = [runs[architecture, seed].result() for seed in range(seeds)]
            counted = figures(architecture, SPACE, TASK)
            rows.append(
                {
                    "architecture": architecture.to_json(), "score": counted.score, "parameters": counted.parameters,
                    "top1": float(np.mean(top1)), "by_seed": top1,
                }
            )  # fmt: skip
            shape = f"{architecture.dim} x {architecture.depth}"
            click.echo(f"{shape:10} score {counted.score:.4f}  {counted.parameters / 1e3:.0f} k  top-1 {top1}")
    accuracies = np.array([row["top1"] for row in rows])
    columns = {
        "score": [row["score"] for row in rows], "depth": [a.depth for a in found], "width": [a.dim for a in found],
    }  # fmt: skip
    taus = {name: tau(np.array(values, dtype=float), accuracies) for name, values in columns.items()}
    for name, value in taus.items():
        click.echo(
            f"tau of {name} and accuracy: {value['tau']:.2f} [{value['low']:.2f}, {value['high']:.2f}], p {value['p']:.3f}"
        )
    settings = {"params": params, "architectures": architectures, "seeds": seeds, "epochs": epochs}
    document = {"machine": describe(), "settings": settings, "speed": fast, "tau": taus, "rows": rows}
    output.write_text(json.dumps(rounded(document), indent=1) + "\n")


if __name__ == "__main__":
    main()
