"""A search on disk: its outcome, which `vit2snn zoo create` reads, and its progress, from which it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, OutputExistsError, SearchError
from ..files import write_whole
from ..reading import Document, checked, parsed, read_json
from ..storage.versions import versions
from .count import Figures
from .evolution import Search, Settings
from .front import front, front_svg
from .schema import Outcome, Progress
from .space import Architecture, Space, Task, arguments
from .windows import Window

KIND = "vit2snn search"


@dataclass(frozen=True)
class Request:
    """What was asked for; a search is resumed with the same only.

    Attributes:
        space: name of the space.
        genes: the space.
        task: name of the task.
        images: the task.
        windows: constraints.
        rate: spikes of a neuron in a timestep, for energies.
        settings: how the search goes.
    """

    space: str
    genes: Space
    task: str
    images: Task
    windows: tuple[Window, ...]
    rate: float
    settings: Settings

    def to_json(self) -> dict[str, Any]:
        """A dictionary as JSON gives it back."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document


def picture_of(out: Path) -> Path:
    """The file of the picture beside an outcome."""
    return out.with_suffix(".svg")


def progress_of(out: Path) -> Path:
    """The file of the progress beside an outcome."""
    return out.with_name(out.name + ".progress")


def check_files(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse outputs that must not be written, before anything is computed.

    Raises:
        OutputExistsError: there is an outcome already, or an unfinished search that is not to be resumed.
        SearchError: what is there is none of ours, there is nothing to resume, or the folder is missing.
    """
    if not out.name:
        raise SearchError(f"{str(out)!r} is not the name of a file", "name one, such as found.json")
    progress = progress_of(out)
    if out.suffix == ".svg":
        raise SearchError(f"{str(out)!r} is where the picture goes", "name the outcome otherwise, such as found.json")
    if not out.parent.is_dir():
        raise SearchError(f"the folder {str(out.parent)!r} does not exist", "make it first")
    if resume and not progress.is_file():
        raise SearchError(f"there is no unfinished search at {str(out)!r}", "leave --resume out")
    if progress.exists() and not (resume or overwrite):
        raise OutputExistsError(
            f"{str(progress)!r} holds an unfinished search", "continue it with --resume, or begin again with --overwrite"
        )
    if progress.exists() and not (resume or _is_progress(progress)):
        raise SearchError(f"{str(progress)!r} is no unfinished search, and its name is taken for one", "move it away")
    if picture_of(out).exists() and not (out.exists() or progress.exists()):
        raise SearchError(f"{str(picture_of(out))!r} exists already, where the picture goes", "choose another file")
    if out.exists():
        if not overwrite and not resume:
            raise OutputExistsError(f"{str(out)!r} exists already", "choose another file, or pass --overwrite")
        read_outcome(out)


def _is_progress(file: Path) -> bool:
    """Whether `write_progress` wrote a file."""
    try:
        document = parsed(file)
    except ArtifactError:
        return False
    return isinstance(document, dict) and document.get("kind") == f"{KIND}, unfinished"


def write_progress(search: Search, request: Request, out: Path) -> None:
    """Write what a search needs to go on.

    Raises:
        ArtifactError: it cannot be written.
    """
    document = {"kind": f"{KIND}, unfinished", "request": request.to_json(), "state": search.state()}
    write_whole(progress_of(out), json.dumps(document) + "\n")


def resume(search: Search, request: Request, out: Path) -> None:
    """Let a search go on from its file.

    Raises:
        SearchError: the file is damaged, or was begun with another request; the message says what differs.
    """
    document = _read(progress_of(out), f"{KIND}, unfinished", Progress)
    begun, now = document["request"], request.to_json()
    for name, value in now.items():
        if begun.get(name) != value:
            was, given = _difference(begun.get(name), value)
            raise SearchError(f"this search was begun with {name} {was}, and would be resumed with {given}", "begin again")
    search.restore(document["state"])


def _difference(was: Any, given: Any) -> tuple[Any, Any]:
    """What differs in two entries."""
    if isinstance(was, Mapping) and isinstance(given, Mapping):
        names = [name for name in given if was.get(name) != given[name]]
        return {name: was.get(name) for name in names}, {name: given[name] for name in names}
    return was, given


def _outcome(search: Search, request: Request, chosen: Mapping[Architecture, Figures]) -> dict[str, Any]:
    """The best architecture, those of the front, and how they were found, for JSON."""

    def entry(architecture: Architecture, figures: Figures) -> dict[str, Any]:
        model = arguments(architecture, request.genes, request.images)
        return {"figures": asdict(figures), "architecture": architecture.to_json(), "model": model}

    return {
        "kind": KIND,
        "best": entry(search.best, search.found[search.best]),
        "front": [entry(architecture, figures) for architecture, figures in chosen.items()],
        "compared": len(search.found),
        "request": request.to_json(),
        "versions": versions(),
    }


def write_outcome(search: Search, request: Request, out: Path) -> dict[str, Any]:
    """Write the outcome and its picture, and clear the progress away.

    Raises:
        ArtifactError: a file cannot be written.
    """
    chosen = front(search.found)
    document = _outcome(search, request, chosen)
    title = f"{request.space}, {request.task}: {len(search.found)} architectures"
    write_whole(picture_of(out), front_svg(search.found, chosen, search.best, title))
    write_whole(out, json.dumps(document, indent=2) + "\n")
    progress_of(out).unlink(missing_ok=True)
    return document


def read_outcome(path: Path) -> dict[str, Any]:
    """The outcome of a search.

    Raises:
        SearchError: the file is missing, or none that `write_outcome` wrote, or damaged; the message names the field.
    """
    return dict(_read(path, KIND, Outcome))


def _read(path: Path, kind: str, schema: type[Document]) -> Document:
    hint = "give a file that vit2snn zoo search wrote"
    document = read_json(path, dict, hint, SearchError)
    if document.get("kind") != kind:
        raise SearchError(f"{str(path)!r} is not a file of {kind!r}", hint)
    return checked(document, schema, path, hint, SearchError)
