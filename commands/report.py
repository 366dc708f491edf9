"""A page that shows what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit2snn.commands.output import emit
from vit2snn.errors import ArtifactError

if TYPE_CHECKING:
    from vit2snn.storage.hub import Place

MARK = b'content="vit2snn report"'


@click.command()
@click.argument("models", metavar="OUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", "page", metavar="FILE", type=click.Path(path_type=Path), help="Page to write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def report(models: tuple[Path, ...], page: Path | None, as_json: bool) -> None:
    """Draw what `vit2snn evaluate` measured of the models in OUT..., as one HTML page that needs no network.

    Several models must come from one ANN and be scored on the same images: the page compares them. It is OUT/report.html of one
    model, report.html of several or of models on the hub (hf-hub:USER/NAME), unless --out names another file.

    \b
    vit2snn report demo-snn
    vit2snn report demo-snn demo-qk demo-shift -o recipes.html
    """
    from vit2snn.files import followed, write_whole
    from vit2snn.measure.report import report_page
    from vit2snn.storage.documents import read_artifacts
    from vit2snn.storage.hub import find

    places = [find(model) for model in models]
    for place in places:
        _check_evaluated(place)
    found = read_artifacts([place.folder for place in places])
    artifacts = [replace(a, name=place.name) if place.shared else a for a, place in zip(found, places, strict=True)]
    own = len(places) == 1 and not places[0].shared
    page = followed(page or (places[0].folder / "report.html" if own else Path("report.html")))
    _check_page(page)
    text = report_page(artifacts)
    write_whole(page, text)
    size = len(text.encode())
    document = {
        "page": str(page),
        "bytes": size,
        "artifacts": [{"name": artifact.name, "folder": str(artifact.folder)} for artifact in artifacts],
    }
    emit(as_json, document, f"{page} ({size / 1e6:.1f} MB): open it in a browser")


def _check_evaluated(place: Place) -> None:
    """Refuse a model of the hub that was sent without an evaluation: none is written beside it there."""
    if place.shared and not (place.folder / "evaluation.json").is_file():
        raise ArtifactError(
            f"{place.name!r} holds no evaluation",
            "make a folder of it, and evaluate that: hf download USER/NAME --revision COMMIT --local-dir OUT",
        )


def _check_page(page: Path) -> None:
    """Refuse to replace anything but an earlier report."""
    if page.is_dir():
        raise ArtifactError(f"{str(page)!r} is a folder", "name a file with -o, such as report.html")
    try:
        with page.open("rb") as file:
            if MARK not in file.read(4096):
                raise ArtifactError(f"{str(page)!r} exists already, and is not a report", "name another file with -o")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ArtifactError(f"{str(page)!r} cannot be written: {error.strerror}", "name another file with -o") from error
