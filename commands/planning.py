"""Which new branches to put into which blocks, before a conversion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.bounds import IMAGES, MANY, TIMESTEPS
from vit2snn.commands.images import DEMO, check_data, data_options, image_source
from vit2snn.commands.memory import check_memory
from vit2snn.commands.models import ann_options, find_recipe, load_ann
from vit2snn.commands.output import bar, emit, note
from vit2snn.commands.processes import is_main, launched, own_images, wait
from vit2snn.errors import DataError

if TYPE_CHECKING:
    from vit2snn.convert import Recipe
    from vit2snn.convert.trials import Candidate


@click.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the plans.")
@click.option("--recipe", default="qkformer", show_default=True, metavar="NAME|FILE", help="All but the kinds of branches.")
@click.option("--timesteps", type=TIMESTEPS, help="T, instead of the recipe's.")
@click.option("--plans", "count", default=10, show_default=True, type=MANY, help="The most that there are.")
@click.option("--samples", default=64, show_default=True, type=IMAGES, help="Images to measure on.")
@click.option("--split", default="train", show_default=True, help="Split of the data to measure on.")
@ann_options
@click.option("--resume", is_flag=True, help="Continue a search for plans that was interrupted.")
@click.option("--overwrite", is_flag=True, help="Replace earlier plans at OUT, and an unfinished search.")
@data_options
def plan(
    model: str, out: Path, recipe: str, timesteps: int | None, count: int, resume: bool, overwrite: bool, as_json: bool,
    **images: Any,
) -> None:  # fmt: skip
    """Find which new branches MODEL should get in which blocks, for less and less energy, and write the plans to OUT.

    Every kind of branch is fitted to every block of MODEL on sample images, and its error and its energy are measured. OUT
    gets the plans that no other beats in both, a recipe file each, and a picture. What has been measured is kept in
    OUT.training until then: an interrupted search goes on with --resume. Several processes share the work:
    torchrun --nproc-per-node 2 -m vit2snn plan ...

    \b
    vit2snn plan demo -o plans
    vit2snn convert demo --recipe plans/plan-3.json -o demo-snn
    """
    from vit2snn.convert import opened
    from vit2snn.convert.plans import compromises, told
    from vit2snn.files import check_output
    from vit2snn.finetune import check_folder, close_folder
    from vit2snn.measure.text import table
    from vit2snn.storage import plans

    check_output(out, overwrite, plans.is_front)
    check_folder(out, resume, overwrite)
    check_data(model, images)
    chosen = opened(find_recipe(recipe, timesteps=timesteps))
    with launched(images["device"]) as device, _unfinished(out, resume) as folder:
        found = _candidates(model, chosen, images, device, folder, resume)
    if not is_main():
        return
    document = plans.write_front(out, model, chosen, found, compromises(chosen, found, count))
    close_folder(out)
    entries = {str(number): entry for number, entry in enumerate(document["plans"])} | document["uniform"]
    fields = chosen.structure.undecided
    rows = [
        [name, f"{entry['energy']:.3f}", f"{entry['error']:.3f}", *(told(entry[field]) for field in fields)]
        for name, entry in entries.items()
    ]
    emit(as_json, document, table(["plan", "energy / ANN", "error", *fields], rows))
    data = "" if model == DEMO else " --data DATA"
    note(f"the picture is {out / plans.PICTURE}; convert with: vit2snn convert {model}{data} --recipe {out}/plan-N.json -o OUT")


@contextmanager
def _unfinished(out: Path, resume: bool) -> Iterator[Path]:
    """The folder in which candidates are kept until there are plans; it stays if this fails with some of them measured."""
    from vit2snn.finetune import drop_folder, folder_of, open_folder

    folder = open_folder(out, resume) if is_main() else folder_of(out)
    wait()
    try:
        yield folder
    finally:
        if is_main():
            drop_folder(out)


def _candidates(
    name: str, recipe: Recipe, images: dict[str, Any], device: Any, folder: Path, resume: bool
) -> list[Candidate]:  # fmt: skip
    """Measure every kind of branch in every block. The processes of a group do it together."""
    import torch
    from timm.data import resolve_model_data_config

    from vit2snn.convert import candidates, plan as planned, provisional
    from vit2snn.convert.auto import KINDS
    from vit2snn.convert.branches import transformer_blocks
    from vit2snn.data import prepared

    ann: Any = load_ann(name, images)
    size = resolve_model_data_config(ann)["input_size"]
    transformer_blocks(ann)  # refuses a model whose branches cannot be exchanged
    planned(ann, provisional(recipe), size)  # refuses what it cannot convert
    seed, wanted = images["seed"], images["samples"]
    source, count = own_images(image_source(ann, images), wanted, seed)
    streams = 2 * len(ann.blocks) * ann.patch_embed.num_patches * ann.embed_dim * 4  # in front of both branches of each block
    check_memory(source, wanted, size, streams)
    samples = list(bar(prepared(ann, source, count=count, seed=seed, workers=images["workers"]), "reading images"))
    if not samples:
        raise DataError("there are no images to measure on", "give a folder with images to --data")
    pixels = torch.stack([sample.image for sample in samples]).to(device)
    total = len(ann.blocks) * sum(len(KINDS[field]) for field in recipe.structure.undecided)
    return list(bar(candidates(ann.to(device), recipe, [pixels], wanted, seed, folder, resume), "fitting", total))
