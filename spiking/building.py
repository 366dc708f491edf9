"""Libraries in C, built by the system's compiler when they are first needed, and kept in the user's cache.

Nothing is loaded that others than this user or root may have written. Where the cache cannot be used, for this or any other
reason, each process builds a library of its own, and leaves none behind.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory


class NotBuilt(Exception):
    """Says why there is no library."""


def loaded(source: Path, command: Sequence[str]) -> ctypes.CDLL:
    """The library that a compiler makes of a source: from the cache if this compiler has built it for this processor.

    Args:
        source: a file in C.
        command: the compiler and its flags.

    Raises:
        NotBuilt: the compiler fails, or failed in an earlier process, or what it makes cannot be loaded.
    """
    folder = _cache()
    try:
        key = _key(source, command)
        if folder is None:
            return _built(source, command, None)
        kept, failed = (folder / f"{source.stem}-{key}{end}" for end in (".so", ".failed"))
        with suppress(OSError):  # there is none, it is damaged, or the cache is mounted so that nothing in it can be run
            if _is_safe(kept):
                return ctypes.CDLL(str(kept))
        with suppress(OSError):
            raise NotBuilt(f"{failed.read_text()} (remove {failed} to try again)")
        try:
            with suppress(OSError):  # it cannot be written, or not be run from
                return _built(source, command, folder, kept)
            return _built(source, command, None)
        except subprocess.SubprocessError as error:
            with suppress(OSError):
                failed.write_text(_reason(error))
            raise
    except (OSError, subprocess.SubprocessError) as error:
        raise NotBuilt(_reason(error)) from None


def _key(source: Path, command: Sequence[str]) -> str:
    """Of a source and all that a compiler knows of itself, of its flags and of the processor."""
    asked = [*command, "-dM", "-E", "-x", "c", os.devnull]
    known = subprocess.run(asked, capture_output=True, check=True, timeout=60).stdout
    return hashlib.sha256(source.read_bytes() + known + " ".join(command).encode()).hexdigest()[:16]


def _built(source: Path, command: Sequence[str], folder: Path | None, kept: Path | None = None) -> ctypes.CDLL:
    """A new library, made in a folder of nobody else in ``folder`` or the system's temporary one, and moved to ``kept``."""
    with TemporaryDirectory(prefix="vit2snn-", dir=folder, ignore_cleanup_errors=True) as own:
        made = Path(own, f"{source.stem}.so")
        subprocess.run([*command, str(source), "-o", str(made), "-lm"], capture_output=True, check=True, timeout=600)
        library = ctypes.CDLL(str(made))
        if kept is not None:
            made.chmod(0o755)  # whatever the umask is: see `_is_safe`
            made.replace(kept)  # in one step, because other processes may be doing the same
        return library


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """In one line: the compiler's, if it gave one."""
    told: bytes = getattr(error, "stderr", None) or b""
    return (told.decode(errors="replace").strip() or str(error)).splitlines()[0]


def _cache() -> Path | None:
    """Our folder in the user's cache, which is made if it is missing; None where others could put a library there."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = ((given if given.is_absolute() else Path.home() / ".cache") / "vit2snn").resolve()
        folder.mkdir(0o700, parents=True, exist_ok=True)
        return folder if _is_safe(folder) and not any(map(_is_open, folder.parents)) else None
    except (OSError, RuntimeError):  # no home is known, or there is no way there
        return None


def _is_safe(path: Path) -> bool:
    """Whether this user or root made it, and nobody else can write to it; links are not."""
    found = path.lstat()
    return (found.st_uid == 0 or found.st_uid == os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_open(folder: Path) -> bool:
    """Whether everybody can replace what lies in it: it can be written to, and not as /tmp can, where owners alone do so."""
    return folder.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH
