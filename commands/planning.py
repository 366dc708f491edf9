"""Which new branches to put into which blocks, before a conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vit2snn.commands.bounds import IMAGES, MANY, TIMESTEPS
from vit2snn.commands.images import DEMO, check_data, data_options, image_source
from vit2snn.commands.memory import check_memory
from vit2snn.commands.models import ann_options, find_recipe, load_ann
from vit2snn.commands.output import bar, emit, note
from vit2snn.commands.processes import find_device
from vit2snn.errors import DataError


@click.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the plans.")
@click.option("--recipe", default="qkformer", show_default=True, metavar="NAME|FILE", help="All but the kinds of branches.")
@click.option("--timesteps", type=TIMESTEPS, help="T, instead of the recipe's.")
@click.option("--plans", "count", default=10, show_default=True, type=MANY, help="The most that there are.")
@click.option("--samples", default=64, show_default=True, type=IMAGES, help="Images to measure on.")
@click.option("--split", default="train", show_default=True, help="Split of the data to measure on.")
@ann_options
@click.option("--overwrite", is_flag=True, help="Replace earlier plans at OUT.")
@data_options
def plan(
    model: str, out: Path, recipe: str, timesteps: int | None, count: int, overwrite: bool, as_json: bool, **images: Any
) -> None:  # fmt: skip
    """Find which new branches MODEL should get in which blocks, for less and less energy, and write the plans to OUT.

    Every kind of branch is fitted to every block of MODEL on sample images, and its error and its energy are measured. OUT
    gets the plans that no other beats in both, a recipe file each, and a picture.

    \b
    vit2snn plan demo -o plans
    vit2snn convert demo --recipe plans/plan-3.json -o demo-snn
    """
    import torch
    from timm.data import resolve_model_data_config

    from vit2snn.convert import candidates, opened, plan as planned, provisional
    from vit2snn.convert.auto import KINDS
    from vit2snn.convert.inputs import seeded
    from vit2snn.convert.plans import compromises, told
    from vit2snn.data import prepared
    from vit2snn.files import check_output
    from vit2snn.measure.text import table
    from vit2snn.storage import plans

    check_output(out, overwrite, plans.is_front)
    check_data(model, images)
    chosen = opened(find_recipe(recipe, timesteps=timesteps))
    device = find_device(images["device"])
    ann: Any = load_ann(model, images)
    size = resolve_model_data_config(ann)["input_size"]
    planned(ann, provisional(chosen), size)  # refuses what it cannot convert
    source = image_source(ann, images)
    check_memory(source, images["samples"], size)
    read = prepared(ann, source, count=images["samples"], seed=images["seed"], workers=images["workers"])
    samples = list(bar(read, "reading images"))
    if not samples:
        raise DataError("there are no images to measure on", "give a folder with images to --data")
    pixels = torch.stack([sample.image for sample in samples]).to(device)
    fields = chosen.structure.undecided
    total = len(ann.blocks) * sum(len(KINDS[field]) for field in fields)
    with seeded(images["seed"], device):
        found = list(bar(candidates(ann.to(device), chosen, [pixels], len(pixels)), "fitting", total))
    front = compromises(chosen, found, count)
    document = plans.write_front(out, model, chosen, found, front)
    entries = {str(number): entry for number, entry in enumerate(document["plans"])} | document["uniform"]
    rows = [
        [name, f"{entry['energy']:.3f}", f"{entry['error']:.3f}", *(told(entry[field]) for field in fields)]
        for name, entry in entries.items()
    ]
    emit(as_json, document, table(["plan", "energy / ANN", "error", *fields], rows))
    data = "" if model == DEMO else " --data DATA"
    note(f"the picture is {out / plans.PICTURE}; convert with: vit2snn convert {model}{data} --recipe {out}/plan-N.json -o OUT")
