"""A page that shows what was measured."""

from __future__ import annotations

from pathlib import Path

import click

from vit2snn.commands.output import emit
from vit2snn.errors import ArtifactError

MARK = b'content="vit2snn report"'


@click.command()
@click.argument("models", metavar="OUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", "page", metavar="FILE", type=click.Path(path_type=Path), help="Page to write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def report(models: tuple[Path, ...], page: Path | None, as_json: bool) -> None:
    """Draw what `vit2snn evaluate` measured of the models in OUT..., as one HTML page that needs no network.

    Several models must come from one ANN and be scored on the same images: the page compares them. It is OUT/report.html of one
    model, report.html of several, unless --out names another file.

    \b
    vit2snn report demo-snn
    vit2snn report demo-snn demo-qk demo-shift -o recipes.html
    """
    from vit2snn.files import followed, write_whole
    from vit2snn.measure.report import report_page
    from vit2snn.storage.documents import read_artifacts

    artifacts = read_artifacts(models)
    page = followed(page or (models[0] / "report.html" if len(models) == 1 else Path("report.html")))
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
