"""Writing to disk so that nothing half-written is ever found there, and nothing of the user's is lost.

Whatever is written is made in a temporary folder beside it, which its process keeps locked, and renamed when it is whole. A
process that is killed leaves that folder unlocked, and the next one that writes there clears it away.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError

from .errors import ArtifactError, OutputExistsError

if sys.platform != "win32":
    import fcntl

WRITTEN = (
    "config.json", "model.safetensors", "ann.safetensors", "conversion.json", "calibration.json", "exits.json", "README.md",
    "run.json", "parity.json", "import.json", "search.json", "metrics.csv",
    "evaluation.json", "evaluation.csv", "curve.svg", "report.html",
    "export.json", "model.onnx", "model.onnx.data", "model.pt2", "model.nir",
    "front.json", "front.svg", *(f"plan-{'[0-9]' * digits}.json" for digits in range(1, 6)),
)  # fmt: skip
"""The files that the commands write into a folder, as patterns; what else lies there is the user's."""
BOARD, EVENTS = "tensorboard", "events.out.tfevents.*"
"""The one folder in a folder, and its files."""
PREFIX = f".vit2snn-{platform.node()}-"
"""Of temporary folders; with the machine, because one that shares the file system may not see who has locked what."""
NEW, OLD = "new", "old"
"""In a temporary folder: what is being written, and a folder with the folder that it replaces."""


def check_output(out: Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    """Refuse an output folder that must not or cannot be written, before any work is done for it.

    Raises:
        OutputExistsError: it exists and ``overwrite`` is not set.
        ArtifactError: it is not ``replaceable``, is the working folder or one around it, or cannot be made.
    """
    out = followed(out)
    try:
        if Path.cwd().is_relative_to(out.resolve()):
            raise ArtifactError(f"{str(out)!r} is the folder that you are in, or around it", "name a folder of its own")
        nearest = next(parent for parent in out.absolute().parents if parent.exists())
        with _temporary(nearest) as temporary:
            (temporary / out.name).mkdir()
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            _check_replaceable(out, overwrite, replaceable)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{str(out)!r} cannot be written: {_reason(error)}", "choose another folder") from error


def _check_replaceable(out: Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    if not overwrite:
        raise OutputExistsError(f"{str(out)!r} exists already", "choose another folder, or pass --overwrite")
    if not replaceable(out):
        raise ArtifactError(f"{str(out)!r} is not a folder that vit2snn wrote, so it is not replaced", "choose another folder")
    _sweep(out)
    for entry in out.iterdir():
        if not is_written(entry) and is_named(entry.name):
            raise ArtifactError(f"{str(entry)!r} is a folder where vit2snn writes a file", "move it away")


def is_written(entry: Path) -> bool:
    """Whether something in a folder that vit2snn wrote is its own, and not the user's."""
    if entry.is_symlink() or not entry.is_dir():
        return is_named(entry.name)
    return entry.name == BOARD and all(fnmatchcase(file.name, EVENTS) for file in entry.iterdir())


def is_named(name: str) -> bool:
    """Whether a file of that name, in a folder that vit2snn wrote, is its own."""
    return any(fnmatchcase(name, pattern) for pattern in WRITTEN)


def followed(out: Path) -> Path:
    """Where an output leads to, if it is a symbolic link: that is what is written.

    Raises:
        ArtifactError: the link leads to itself.
    """
    if not os.path.islink(out):
        return out
    target = Path(os.path.realpath(out))
    if os.path.islink(target):
        raise ArtifactError(f"{str(out)!r} is a symbolic link that leads to itself", "choose another place")
    return target


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``out`` when the block ends, and vanishes when it fails.

    What lies in an earlier ``out`` and is not `is_written` stays there.

    Raises:
        ArtifactError: the folder cannot be written; what was at ``out`` is still there.
    """
    out = followed(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(out.parent) as temporary:
            new = temporary / NEW
            new.mkdir()
            yield new
            for file in new.iterdir():  # safetensors keeps its files to the user
                file.chmod(new.stat().st_mode & 0o666)
            if out.exists():
                (temporary / OLD).mkdir()
                out.rename(temporary / OLD / out.name)
            new.rename(out)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{str(out)!r} cannot be written: {_reason(error)}") from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file by renaming a temporary one.

    Raises:
        ArtifactError: it cannot be written; an older file at ``path`` is still there.
    """
    try:
        with _temporary(path.parent) as temporary:
            new = temporary / NEW
            new.write_text(text, encoding="utf-8")
            new.replace(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{str(path)!r} cannot be written: {_reason(error)}") from error


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A locked folder, cleared away at the end, as those of dead processes are at the beginning."""
    _sweep(parent)
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with _locked(temporary, wait=True):
            if not temporary.exists():
                continue  # another process took it for a dead one's before it was locked
            try:
                yield temporary
            finally:
                _clear(temporary)
            return


@contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Within this context a folder is locked, as it is no longer when the process dies; whether that could be done."""
    if sys.platform == "win32":
        yield False
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        yield _flock(handle, wait)
    finally:
        os.close(handle)


def _flock(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # somebody has locked it, or the file system knows no locks
        return False
    return True


def _sweep(folder: Path) -> None:
    """Clear away the temporary folders in a folder that this user's dead processes on this machine left."""
    for temporary in folder.glob(f"{PREFIX}*"):
        with suppress(OSError, ArtifactError), _locked(temporary, wait=False) as alone:  # in doubt it stays
            if alone and temporary.stat().st_uid == os.geteuid():
                _clear(temporary)


def _clear(temporary: Path) -> None:
    """Remove a temporary folder, but nothing of the user's in it.

    What a replaced folder held of the user's goes into the new one; all of it goes back, if there is no new one.

    Raises:
        ArtifactError: that cannot be done.
    """
    old = temporary / OLD
    try:
        for replaced in old.iterdir() if old.is_dir() and not old.is_symlink() else ():
            out = temporary.parent / replaced.name
            if out.exists():
                _move_own(replaced, out)
            else:
                replaced.rename(out)
    except OSError as error:
        raise ArtifactError(f"what was replaced is in {str(old)!r}, and cannot be put back: {_reason(error)}") from error
    shutil.rmtree(temporary, ignore_errors=True)


def _move_own(replaced: Path, out: Path) -> None:
    for entry in replaced.iterdir():
        if not is_written(entry) and not (out / entry.name).is_file():
            entry.rename(out / entry.name)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
