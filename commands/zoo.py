"""The zoo: what there is, what is known about it, and the authors' checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vit2snn.commands.output import emit
from vit2snn.commands.search import create, search
from vit2snn.commands.zoo_models import audit, show
from vit2snn.errors import CheckpointError, ModelError


@click.group()
def zoo() -> None:
    """The spiking transformers of the literature."""


for command in (show, audit, search, create):
    zoo.add_command(command)


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
