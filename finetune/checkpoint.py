"""The folder of an unfinished training: a checkpoint that is always whole, and the metrics so far.

It lies beside the output, under a name that the user did not choose, so it is marked: in a folder without the mark nothing is
written, moved or removed.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypedDict

import msgspec
import torch

from ..errors import ArtifactError, OutputExistsError

CHECKPOINT = "checkpoint"
BRANCHES, SPIKES = STAGES = "branches", "spikes"
"""Folders for checkpoints of other stages: those in which `vit2snn.convert` fits branches one by one."""
PARTIAL = "checkpoint.partial"
CANDIDATES = "candidates.json"
"""What `vit2snn.storage.plans` keeps of branches that have been measured so far."""
METRICS = ("metrics.csv", "tensorboard")
WRITTEN = (CHECKPOINT, PARTIAL, *STAGES, CANDIDATES, *METRICS)
MARK, MARKED = "unfinished.txt", b"Unfinished work of vit2snn: it goes on with --resume.\n"
"""A file of a folder of ours, and what it says."""


@dataclass(frozen=True)
class Workspace:
    """Where an unfinished training is kept, and how often.

    Attributes:
        folder: made by `open_folder`.
        every: updates between checkpoints; None for one at the end of each epoch. There is always one after the last update.
        resume: continue from the checkpoint in the folder, if there is one already.
        identity: what else, beside the settings, must be the same when a training is resumed: data, batch size, objective.
            Values that JSON can hold.
        tensorboard: also write the metrics for TensorBoard, in a folder ``tensorboard`` of this folder.
    """

    folder: Path
    every: int | None = None
    resume: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    tensorboard: bool = False


def folder_of(out: Path) -> Path:
    """Where the training whose result is to be ``out`` is kept: ``OUT.training`` beside it."""
    return out.with_name(f"{out.name}.training")


def check_folder(out: Path, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse a training that would overwrite another one, or that has nothing to resume. Changes nothing.

    Raises:
        OutputExistsError: there is an unfinished training, and it shall neither be resumed nor overwritten.
        ArtifactError: there is none to resume, or what is there is not of vit2snn.
    """
    folder = folder_of(out)
    _check_own(folder)
    if resume and not folder.is_dir():
        raise ArtifactError(f"there is no unfinished training {str(folder)!r} to resume", "begin one without --resume")
    if _is_unfinished(folder) and not (resume or overwrite):
        raise OutputExistsError(
            f"{str(folder)!r} exists already: it holds an unfinished training",
            "continue it with --resume, or start anew with --overwrite",
        )


def open_folder(out: Path, resume: bool = False) -> Path:
    """The folder of a training: made, and emptied of an earlier one unless that is resumed.

    Raises:
        ArtifactError: it cannot be made, or what is there is not of vit2snn.
    """
    folder = folder_of(out)
    _check_own(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_bytes(MARKED)
        if not resume:
            _empty(folder)
    except OSError as error:
        raise ArtifactError(f"{str(folder)!r} cannot be made: {error.strerror or error}") from error
    return folder


def drop_folder(out: Path) -> None:
    """Remove the folder of a training that failed, unless it has a checkpoint to go on from."""
    folder = folder_of(out)
    if _is_own(folder) and not _is_unfinished(folder):
        _remove(folder)


def _is_unfinished(folder: Path) -> bool:
    """Whether there is something to go on from."""
    return (folder / CANDIDATES).exists() or any((folder / stage / CHECKPOINT).exists() for stage in ("", *STAGES))


def _is_own(folder: Path) -> bool:
    """Whether `open_folder` marked that folder."""
    try:
        with (folder / MARK).open("rb") as file:
            return file.read(len(MARKED) + 1) == MARKED
    except OSError:
        return False


def _check_own(folder: Path) -> None:
    """Refuse a folder of the user's in which a training would write over something, or remove it."""
    taken = [name for name in (MARK, *WRITTEN) if os.path.lexists(folder / name)]
    if taken and not _is_own(folder):
        raise ArtifactError(
            f"{str(folder / taken[0])!r} is not of vit2snn, and lies where it keeps what is unfinished",
            "move it away, or name another output",
        )


def close_folder(out: Path) -> None:
    """Move the metrics into the finished ``out`` and remove the folder of its training, if there is one.

    Raises:
        ArtifactError: that cannot be done; ``out`` is whole nevertheless.
    """
    folder = folder_of(out)
    if not _is_own(folder):
        return
    try:
        for name in METRICS:
            if (folder / name).exists():
                shutil.move(folder / name, out / name)
        _remove(folder)
    except OSError as error:
        raise ArtifactError(
            f"{str(folder)!r} cannot be cleared away: {error.strerror or error}", f"{str(out)!r} is complete without it"
        ) from error


def _empty(folder: Path) -> None:
    """Remove what a training has written, and nothing else."""
    for name in WRITTEN:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    _empty(folder)
    (folder / MARK).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def save_checkpoint(folder: Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Replace the checkpoint in a folder. Whatever happens meanwhile, the old one or the new one is there, whole.

    Args:
        folder: of the training.
        state: tensors and plain values, nested.
        identity: what `load_checkpoint` compares.

    Raises:
        ArtifactError: it cannot be written; the earlier checkpoint is still there.
    """
    with replacing(folder, CHECKPOINT) as file:
        torch.save({"identity": json.dumps(identity), "state": dict(state)}, file)


@contextmanager
def replacing(folder: Path, name: str) -> Iterator[IO[bytes]]:
    """A file to write in the folder of a training, which takes the place of the one of that name when it is whole.

    Raises:
        ArtifactError: it cannot be written; the earlier one is still there.
    """
    partial = folder / PARTIAL
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / name)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch turns some errors of the file into RuntimeErrors
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        kept = "the one before it is whole" if (folder / name).exists() else "there is none before it"
        raise ArtifactError(
            f"the checkpoint in {str(folder)!r} cannot be written: {reason}; {kept}", "make room, and continue with --resume"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; there are systems (Windows) on which folders cannot be opened."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class _Kept(TypedDict):
    identity: str
    state: dict[str, Any]


def load_checkpoint(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state in a folder, tensors on the CPU; None if no checkpoint has been written yet.

    Raises:
        ArtifactError: the file is damaged, or the training was begun with another ``identity``; the message names the setting.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    with restoring(folder):
        _check_archive(path)
        kept = msgspec.convert(torch.load(path, map_location="cpu", weights_only=True), _Kept)
        begun = msgspec.json.decode(kept["identity"], type=dict[str, Any])
    check_identity(folder, begun, identity)
    return kept["state"]


def check_identity(folder: Path, begun: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse to resume what was begun with other settings.

    Raises:
        ArtifactError: ``begun`` is not ``identity`` as JSON gives it back; the message names the setting.
    """
    now = json.loads(json.dumps(identity))
    for name in sorted(begun.keys() | now.keys()):
        if begun.get(name) != now.get(name):
            raise ArtifactError(
                f"the training in {str(folder)!r} was begun with {name} {begun.get(name)!r}, and would be resumed with "
                f"{now.get(name)!r}",
                "resume it with the settings it was begun with, or start anew with --overwrite",
            )


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Within this context, whatever the checkpoint in a folder is unfit for is told as damage of its file.

    Raises:
        ArtifactError: the checkpoint cannot be read, or does not fit.
    """
    try:
        yield
    except Exception as error:  # of pickles and states that may hold anything, anything can come
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(
            f"the checkpoint {str(folder / CHECKPOINT)!r} cannot be read: {reason}", "start anew with --overwrite"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse what takes more memory than its file is large (torch packs nothing), and what is not what was written."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("it is packed")
        if damaged := archive.testzip():  # torch reads it without a word
            raise ValueError(f"the checksum of {damaged!r} differs")
