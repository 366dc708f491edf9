"""Writing to disk so that nothing half-written is ever found there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import ArtifactError, OutputExistsError


def check_output(out: Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    """Refuse an output folder that must not or cannot be written, before any work is done for it.

    Raises:
        OutputExistsError: it exists and ``overwrite`` is not set.
        ArtifactError: it is not ``replaceable``, is the working folder or one around it, or cannot be made.
    """
    try:
        if Path.cwd().is_relative_to(out.resolve()):
            raise ArtifactError(f"{str(out)!r} is the folder that you are in, or around it", "name a folder of its own")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            if not overwrite:
                raise OutputExistsError(f"{str(out)!r} exists already", "choose another folder, or pass --overwrite")
            if not replaceable(out):
                raise ArtifactError(f"{str(out)!r} is not a folder that vit2snn wrote, so it is not replaced")
        nearest = next(parent for parent in out.absolute().parents if parent.exists())
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=nearest).cleanup()
    except OSError as error:
        raise ArtifactError(f"{str(out)!r} cannot be written: {error.strerror or error}", "choose another folder") from error


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends, and vanishes when it fails.

    Raises:
        ArtifactError: the folder cannot be written; what was at ``out`` is still there.
    """
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield temporary
        _apply_umask(temporary)
        _swap(temporary, out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArtifactError(f"{str(out)!r} cannot be written: {reason}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    replaced = old / "replaced"
    try:
        out.rename(replaced)
        new.rename(out)
    except BaseException:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file by renaming a temporary one.

    Raises:
        ArtifactError: it cannot be written; an older file at ``path`` is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _apply_umask(folder: Path) -> None:
    """Give a temporary folder and its files, private so far, the permissions that newly made ones have."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)
