"""Models on the Hugging Face hub: folders of ours, sent there and fetched from there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..convert.fields import shown
from ..errors import ArtifactError, HubError, Vit2SnnError
from ..files import WRITTEN, is_named
from ..reading import parsed
from .card import README, shared_card
from .metadata import HUB
from .schema import CONFIG, SCHEMA, SECTION, ZOO_SECTION

LONGEST = 200  # letters of what a library says in a message
LOGIN = "log in with: hf auth login, or set HF_TOKEN"

logger = logging.getLogger("vit2snn")


@dataclass(frozen=True)
class Place:
    """Where a model is.

    Attributes:
        folder: on this machine; of a model on the hub, in the cache of `huggingface_hub`, where nothing else is written.
        name: what to call it for the record: the folder as it was given, or ``hf-hub:USER/NAME@COMMIT``.
    """

    folder: Path
    name: str

    @property
    def shared(self) -> bool:
        """Whether it is of the hub."""
        return self.name.startswith(HUB)


def find(place: str | Path) -> Place:
    """The folder of a model; one on the hub is fetched unless it is in the cache, with nothing but files of ours.

    Args:
        place: a folder, which is not looked at, or ``hf-hub:USER/NAME``, with ``@REVISION`` for a branch, a tag or a commit.

    Raises:
        HubError: the hub has no such repository or revision, cannot be reached, or does not let it be read.
        ArtifactError: the repository holds no model of ours, or one of another version.
    """
    name = _posix(place)
    if not name.startswith(HUB):
        return Place(Path(place), name)
    repository, revision = _split(name)
    config = _config(repository, revision)
    if config is None or not _sections(config):
        raise ArtifactError(
            f"{name!r} is no model that vit2snn wrote: its {CONFIG} is missing or another program's",
            f"a model of timm is converted with: vit2snn convert {name} -o OUT",
        )
    _check_schema(config, name)
    commit = config.parent.name
    with _told(repository, revision):
        folder = Path(snapshot_download(repository, revision=commit, allow_patterns=list(WRITTEN)))
    found = Place(folder, f"{HUB}{repository}@{commit}")
    if revision != commit:
        logger.warning("note: %s is now %s, by which it stays the same", name, found.name)
    return found


def is_converted(name: str) -> bool:
    """Whether a name is of a converted model on the hub, and not of one of timm, or of something else.

    Raises:
        HubError: as of `find`.
    """
    if not name.startswith(HUB):
        return False
    config = _config(*_split(name))
    return config is not None and SECTION in _sections(config)


def push(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Send a model to the hub, in one commit; files of ours that lie there and not in the folder are removed.

    What else lies in the folder is not sent. The card is `shared_card`.

    Args:
        folder: that `save` or `save_model` wrote.
        repository: ``USER/NAME``, which is made if it is not there; ``NAME`` is of the user who is logged in.
        private: whether it is, if it is made; what is usual for the user unless given.
        revision: the branch, which is made if it is not there; the main one unless given.
        commit_message: what it says.

    Returns:
        ``hf-hub:USER/NAME@COMMIT``.

    Raises:
        HubError: the hub cannot be reached or refuses.
        ArtifactError: the folder holds no model, or a damaged one.
    """
    if not (folder / CONFIG).is_file() or not _sections(folder / CONFIG):
        raise ArtifactError(f"{str(folder)!r} holds no model of vit2snn", "make one with: vit2snn convert MODEL -o OUT")
    files = [entry for entry in sorted(folder.iterdir()) if entry.is_file() and is_named(entry.name)]
    contents: dict[str, str | bytes] = {file.name: str(file) for file in files} | {README: shared_card(folder).encode()}
    api = HfApi()
    with _told(repository, revision):
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        there = api.list_repo_files(repository, revision=revision)
        stale = [name for name in there if is_named(name) and name not in contents]
        done = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(name, content) for name, content in contents.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=commit_message or "Model of vit2snn",
            revision=revision,
        )
    return f"{HUB}{repository}@{done.oid}"


def _posix(place: str | Path) -> str:
    return place.as_posix() if isinstance(place, Path) else place


def _split(name: str) -> tuple[str, str | None]:
    """Repository and revision."""
    repository, _, revision = name.removeprefix(HUB).partition("@")
    return repository, revision or None


def _config(repository: str, revision: str | None) -> Path | None:
    """The ``config.json`` of a repository, in the folder of its commit; None if it has none."""
    with _told(repository, revision):
        try:
            return Path(hf_hub_download(repository, CONFIG, revision=revision))
        except RemoteEntryNotFoundError:
            return None


def _sections(config: Path) -> set[str]:
    """Those of a ``config.json`` that are of models of ours."""
    document = parsed(config)
    return {SECTION, ZOO_SECTION} & document.keys() if isinstance(document, dict) else set()


def _check_schema(config: Path, name: str) -> None:
    section = parsed(config).get(SECTION)
    if isinstance(section, dict) and section.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{name!r} has schema {shown(section.get('schema'))}, this vit2snn reads schema {SCHEMA}",
            "name a revision that this version wrote (hf-hub:USER/NAME@REVISION), or install the version that wrote this one",
        )


@contextmanager
def _told(repository: str, revision: str | None) -> Iterator[None]:
    """Within this context, whatever the hub, its library or the network raises becomes a `HubError`."""
    try:
        yield
    except Vit2SnnError:
        raise
    except Exception as error:  # of the network library, whose errors have no common kind
        raise _translated(error, repository, revision) from error


def _translated(error: BaseException, repository: str, revision: str | None) -> HubError:
    if isinstance(error, RuntimeError) and error.__cause__:  # of a large file
        return _translated(error.__cause__, repository, revision)
    if isinstance(error, HFValidationError):
        return HubError(f"{repository!r} is no name of a repository", "expected USER/NAME of letters, digits, '-', '_' and '.'")
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{repository!r} has no revision {revision!r} on the hub", "give a branch, a tag or a whole commit")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(f"the hub has no {repository!r}, or not for you", f"check the name; if it is private or gated, {LOGIN}")
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)) and constants.HF_HUB_OFFLINE:
        return HubError(f"{repository!r} is not in the cache, and HF_HUB_OFFLINE is set", "unset it to use the hub")
    if isinstance(error, HfHubHTTPError):
        return _refusal(error.response.status_code, error.server_message, repository)
    return HubError(
        f"{repository!r} cannot be fetched from the hub, or sent to it: {' '.join(str(error).split())[:LONGEST]}",
        f"check the connection; the hub is {constants.ENDPOINT} (HF_ENDPOINT)",
    )


def _refusal(status: int, said: str | None, repository: str) -> HubError:
    if status == 401:
        return HubError(f"the hub does not know who asks for {repository!r}: the token is missing or not valid", LOGIN)
    if status == 403:
        return HubError(f"the hub does not let you do that with {repository!r}", "use a token with more rights")
    return HubError(f"the hub refused {repository!r}: {' '.join((said or f'status {status}').split())[:LONGEST]}")
