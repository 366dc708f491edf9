"""The search for architectures, and the models that come of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import GENERATIONS, MANY, MEMBER, SEED, Number
from vit2snn.commands.output import bar, emit, note

if TYPE_CHECKING:
    from vit2snn.search import Request, Search

SHOWN = 10  # members of the front, evenly chosen
WINDOWS = ("parameters", "macs", "energy", "latency")


def _find(kind: str, name: str, known: dict[str, Any]) -> Any:
    from vit2snn.errors import SearchError

    if name not in known:
        raise SearchError(f"there is no {kind} {name!r}", f"choose one of {', '.join(known)}")
    return known[name]


@click.command()
@click.option("--space", required=True, metavar="NAME", help="autost-tiny, -small or -base, or a frame: spikformer, ...")
@click.option(
    "--task", default="cifar100", show_default=True, metavar="NAME", help="cifar10, cifar100, imagenet or cifar10dvs."
)
@click.option("--params", "parameters", metavar="WINDOW", help="Parameters, as 11M-12M, or 12M for at most so many.")
@click.option("--macs", metavar="WINDOW", help="Multiply-accumulates for an image in all timesteps, as 2G.")
@click.option("--energy", metavar="WINDOW", help="Estimated energy for an image, as 1mJ.")
@click.option("--latency", metavar="WINDOW", help="Measured time for an image, as 20ms; slow, and not the same each time.")
@click.option("--rate", type=Number(0, 1, min_open=True), help="Spikes of a neuron in a timestep, for energies.")
@click.option("--select", default="score", show_default=True, type=click.Choice(["score", "front"]), help="Parents.")
@click.option("--generations", default=20, show_default=True, type=GENERATIONS, help="After the first population.")
@click.option("--population", default=50, show_default=True, type=MANY, help="Half mutations, half crossovers.")
@click.option("--seed", default=0, show_default=True, type=SEED)
@click.option("-o", "--out", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file.")
@click.option("--resume", is_flag=True, help="Continue a search that was interrupted.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier search at FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def search(out: Path, resume: bool, overwrite: bool, as_json: bool, **asked: Any) -> None:
    """Find spiking transformers within budgets, without training and without data, by AutoST's score: the more operations, the
    better.

    FILE gets the architecture of the highest score and the Pareto front of score, parameters and energy; beside it is a picture
    of them. An interrupted search goes on with --resume.

    \b
    vit2snn zoo search --space autost-tiny --params 11M-12M -o found.json
    vit2snn zoo create found.json -o found
    """
    from vit2snn import search as library
    from vit2snn.files import followed

    out = followed(out)
    library.check_files(out, resume, overwrite)
    request = _request(asked)
    running = _search(request)
    if resume:
        library.resume(running, request, out)
    for _ in bar(range(running.generation, request.settings.generations), "generations"):
        running.advance()
        library.write_progress(running, request, out)
    document = library.write_outcome(running, request, out)
    emit(as_json, document, _told(document))
    note(f"{out}, and a picture in {library.picture_of(out)}; make the model with: vit2snn zoo create {out} -o OUT")


def _request(asked: dict[str, Any]) -> Request:
    from vit2snn.search import FIRING_RATE, SPACES, TASKS, Request, Settings, Window

    space, task = _find("space", asked["space"], SPACES), _find("task", asked["task"], TASKS)
    windows = tuple(Window.parse(figure, asked[figure]) for figure in WINDOWS if asked[figure] is not None)
    size = asked["population"]
    settings = Settings(
        generations=asked["generations"], population=size, parents=max(size // 5, 2), mutations=size // 2,
        crossovers=size // 2, select=asked["select"], seed=asked["seed"],
    )  # fmt: skip
    return Request(asked["space"], space, asked["task"], task, windows, asked["rate"] or FIRING_RATE, settings)


def _search(request: Request) -> Search:
    from vit2snn.search import Search, figures, latency
    from vit2snn.spiking import prepare_process

    prepare_process()
    space, task = request.genes, request.images
    return Search(
        space, request.space, request.windows, request.settings,
        lambda architecture: figures(architecture, space, task, request.rate),
        lambda architecture: latency(architecture, space, task),
    )  # fmt: skip


def _told(document: dict[str, Any]) -> str:
    """The best and the front as a table."""
    from vit2snn.measure.text import table

    def row(name: str, entry: dict[str, Any]) -> list[str]:
        figures, genes = entry["figures"], entry["architecture"]
        latency = [] if figures["latency"] is None else [f"{figures['latency'] * 1e3:.1f}"]
        shape = f"{genes['dim']} x {'+'.join(map(str, genes['depths']))}, T = {genes['timesteps']}"
        costs = [f"{figures['score']:.3f}", f"{figures['parameters'] / 1e6:.3f}", f"{figures['energy'] * 1e3:.3f}"]
        return [name, *costs, *latency, shape, " ".join(dict.fromkeys(genes["attention"]))]

    timed = ["latency (ms)"] if document["best"]["figures"]["latency"] is not None else []
    head = ["", "score", "parameters (M)", "energy (mJ)", *timed, "width x depth", "attention"]
    members = list(enumerate(document["front"]))
    shown = [members[i * (len(members) - 1) // max(SHOWN - 1, 1)] for i in range(SHOWN)] if len(members) > SHOWN else members
    rows = [row("best", document["best"]), *(row(str(number), entry) for number, entry in shown)]
    compared = f"{document['compared']} architectures within the windows, {len(members)} of them on the front"
    return f"{compared}\n{table(head, rows)}"


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the model.")
@click.option("--member", type=MEMBER, metavar="N", help="Member of the front; the best score unless given.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of the random weights.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier model at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def create(file: Path, out: Path, member: int | None, seed: int, overwrite: bool, as_json: bool) -> None:
    """Write a model that `vit2snn zoo search` found to OUT as a timm model, with random weights.

    \b
    vit2snn zoo create found.json -o found
    vit2snn train found --data cifar100 -o trained
    """
    import torch

    from vit2snn.errors import SearchError
    from vit2snn.files import check_output
    from vit2snn.search import Task, create as create_model, read_outcome
    from vit2snn.storage import is_replaceable, save_model

    check_output(out, overwrite, is_replaceable)
    document = read_outcome(file)
    front = document["front"]
    if member is not None and member >= len(front):
        raise SearchError(
            f"the front in {str(file)!r} has the members 0 to {len(front) - 1}, got {member}", "choose one of them"
        )
    entry = document["best"] if member is None else front[member]
    torch.manual_seed(seed)
    model = create_model(entry["model"], Task(**document["request"]["images"]))
    save_model(model, out, overwrite=overwrite, records={"search.json": entry})
    parameters = sum(p.numel() for p in model.parameters())
    emit(as_json, entry | {"out": str(out), "parameters": parameters}, f"{parameters / 1e6:.3f} M parameters, in {out}")
    note(f"train it with: vit2snn train {out} -o TRAINED")
