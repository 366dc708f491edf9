"""The zoo: what there is, what is known about it, and the authors' checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vit2snn.commands.output import emit
from vit2snn.commands.search import create, search
from vit2snn.errors import CheckpointError, ModelError


@click.group()
def zoo() -> None:
    """The spiking transformers of the literature."""


zoo.add_command(search)
zoo.add_command(create)


@zoo.command("list")
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(pattern: str, as_json: bool) -> None:
    """List the models whose name matches PATTERN, with parameters and the first published accuracy.

    \b
    vit2snn zoo list 'qkformer*'
    """
    from fnmatch import fnmatch

    import timm
    import torch

    from vit2snn.measure.text import table
    from vit2snn.zoo import VARIANTS

    names = sorted(name for name in VARIANTS if fnmatch(name, pattern))
    if not names:
        raise ModelError(f"the zoo has no model that matches {pattern!r}", "vit2snn zoo list shows all")
    rows = []
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        published = VARIANTS[name].published[:1]
        size = "x".join(map(str, model.pretrained_cfg["input_size"]))
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        accuracy = f"{published[0].dataset} {published[0].top1}" if published else "-"
        rows.append([name, f"{millions:.3f}", size, str(model.timesteps), accuracy])
    head = ["model", "parameters (M)", "input", "T", "published top-1 %"]
    emit(as_json, [dict(zip(head, row, strict=True)) for row in rows], table(head, rows))


@zoo.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(name: str, as_json: bool) -> None:
    """Show what the model NAME costs and what was published about it.

    NAME is a name of `vit2snn zoo list`, or a folder that `vit2snn train` or `vit2snn zoo import` wrote, or hf-hub:USER/NAME of
    one: then the spikes that `vit2snn evaluate` counted are shown too.
    """
    from vit2snn.convert import load_model
    from vit2snn.measure.text import table
    from vit2snn.storage import is_model_folder, open_network
    from vit2snn.storage.hub import find
    from vit2snn.zoo import VARIANTS, statistics

    place = find(name).folder
    folder = place if is_model_folder(place) else None
    if folder is None and name not in VARIANTS:
        import difflib

        near = difflib.get_close_matches(name, VARIANTS, n=3)
        raise ModelError(f"the zoo has no model {name!r}", f"did you mean {', '.join(near)}?" if near else "vit2snn zoo list")
    model: Any = open_network(folder) if folder else load_model(name, pretrained=False)
    cfg = model.pretrained_cfg
    found = statistics(model, cfg["input_size"][1:])
    published = [] if folder else [asdict(entry) for entry in VARIANTS[name].published]
    measured = _measured(folder)
    lines = [
        f"{name}: {cfg.get('paper_name', '')}" + (f" ({cfg['paper_ids']})" if "paper_ids" in cfg else ""),
        f"input {'x'.join(map(str, cfg['input_size']))}, {model.num_classes} classes, T = {model.timesteps or 'of the frames'}",
        f"{found.parameters / 1e6:.3f} M parameters",
        f"for an image and a timestep: {found.layer_macs / 1e9:.3f} GMAC in layers, {found.product_macs / 1e9:.3f} GMAC in "
        f"products of spikes, {found.neurons / 1e6:.3f} M neurons",
        f"spikes: {measured['text']}" if measured else _bound(found.neurons, model.timesteps),
    ]
    if published:
        rows = [
            [p["dataset"], f"{p['top1']:.2f}", str(p["timesteps"]), f"{p['energy'] or '-'}", p["source"], p["caveat"]]
            for p in published
        ]
        lines += ["published, not measured here:", table(["data", "top-1 %", "T", "energy mJ", "source", "caveat"], rows)]
    document = {"name": name, "statistics": asdict(found), "published": published, "measured": measured}
    emit(as_json, document, "\n".join(lines))


def _bound(neurons: int, timesteps: int) -> str:
    most = (
        f"at most {neurons * timesteps / 1e6:.1f} M for an image" if timesteps else "at most one of each neuron in a timestep"
    )
    return f"spikes: {most}; how many depends on the weights, and vit2snn evaluate OUT counts them"


def _measured(folder: Path | None) -> dict[str, Any] | None:
    """The last row of the evaluation in a folder, if there is one."""
    from vit2snn.storage.documents import last_point

    last = last_point(folder) if folder else None
    if last is None:
        return None
    text = f"{last['spikes_per_neuron']:.3f} for a neuron in {last['timestep']} timesteps, at {last['top1']:.1f} % top-1"
    return {**last, "text": text}


@zoo.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--layout",
    required=True,
    help="Whose code wrote FILE: qkformer_imagenet, sdt, ... (docs/zoo.md).",
)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The authors' arguments, as JSON.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the model.")
@click.option("--batch-leak", is_flag=True, help="QKFormer: let images of a batch leak into each other, as published.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier import at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def import_(file: Path, layout: str, config: Path | None, out: Path, batch_leak: bool, overwrite: bool, as_json: bool) -> None:
    """Write the authors' checkpoint FILE to OUT as a timm model.

    What the weights do not tell (heads, T, the pooling of SDT, ...) comes from --config, or is the authors' default.

    \b
    vit2snn zoo import 10_384.pth --layout qkformer_imagenet -o qkformer
    """
    from vit2snn.convert import read_checkpoint
    from vit2snn.files import check_output
    from vit2snn.storage import is_replaceable, save_model
    from vit2snn.zoo import from_official

    check_output(out, overwrite, is_replaceable)
    model: Any = from_official(layout, _config(config), read_checkpoint(file), batch_leak)
    record = {"file": file.name, "layout": layout, "architecture": model.pretrained_cfg["architecture"]}
    save_model(model, out, overwrite=overwrite, records={"import.json": record})
    parameters = sum(p.numel() for p in model.parameters())
    emit(as_json, record | {"out": str(out), "parameters": parameters}, f"{parameters / 1e6:.3f} M parameters, in {out}")
    click.echo(f"use it as timm.create_model('local-dir:{out}', pretrained=True) after import vit2snn.zoo", err=True)


def _config(file: Path | None) -> dict[str, Any]:
    """The authors' arguments, of which those that are read are within bounds."""
    from vit2snn.reading import checked, parsed
    from vit2snn.zoo.configuration import Configuration

    if file is None:
        return {}
    hint = "give the authors' arguments as a JSON object, or leave an entry out"
    config: dict[str, Any] = parsed(file, hint, CheckpointError)
    checked(config, Configuration, file, hint, CheckpointError)
    return config
