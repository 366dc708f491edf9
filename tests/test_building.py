"""Libraries in C: built wherever there is a compiler, kept where that is safe, and never another's."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vit2snn.spiking import building, native
from vit2snn.spiking.building import NotBuilt, loaded

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
FLAGS = ["-shared", "-fPIC"]
NOBODY = 65534


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that all may enter, for the cache and for temporary files, both empty, and for a source."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        place.chmod(0o755)
        (place / "tmp").mkdir()
        (place / "source.c").write_text("int answer(void) { return 42; }\n")
        monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
        yield place


def answer(place: Path, *command: str) -> int:
    """Of the library; nothing is left in the folder for temporary files."""
    found: int = loaded(place / "source.c", [*(command or ("cc",)), *FLAGS]).answer()
    assert not list((place / "tmp").iterdir())
    return found


def kept(place: Path) -> list[Path]:
    return sorted((place / "cache" / "vit2snn").glob("*"))


def compiler(place: Path, does: str, version: str = "1") -> str:
    """One that counts in the file "asked" what it is asked to build, and then ``does``."""
    path = place / "compiler"
    path.write_text(
        f'#!/bin/sh\ncase " $* " in *" -E "*) echo {version}; exit;; esac\necho >> "{place}/asked"\n{does}\n', encoding="utf-8"
    )
    path.chmod(0o755)
    return str(path)


def test_a_library_is_built_once(place: Path) -> None:
    command = compiler(place, 'exec cc "$@"')
    before = os.umask(0o002)  # files are group-writable, as some systems have them
    try:
        assert [answer(place, command) for _ in range(3)] == [42] * 3
    finally:
        os.umask(before)
    assert (place / "asked").read_text() == "\n"
    assert [path.suffix for path in kept(place)] == [".so"]


@pytest.mark.parametrize("why", ["no home", "a file", "open to the group", "open to all", "in an open folder", "relative"])
def test_without_a_cache_a_library_is_built_and_removed(place: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = place / "cache"
    if why in ("no home", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", "" if why == "no home" else "cache")
        monkeypatch.chdir(place)
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # an unknown user
    elif why == "a file":
        cache.write_text("")
    else:
        (cache / "vit2snn").mkdir(parents=True)
        changed = cache if why == "in an open folder" else cache / "vit2snn"
        changed.chmod(0o775 if why == "open to the group" else 0o777)
    assert answer(place) == 42
    assert not kept(place)


@pytest.mark.parametrize("of", ["the group", "another", "a link", "nobody"])
def test_a_library_that_another_may_have_written_is_not_loaded(place: Path, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(place) == 42
    (library,) = kept(place)
    (place / "evil.c").write_text("int answer(void) { return 666; }\n")
    evil = place / "evil.so"
    subprocess.run(["cc", *FLAGS, str(place / "evil.c"), "-o", str(evil)], check=True)
    library.unlink()  # its inode is loaded
    if of == "a link":
        library.symlink_to(evil)
    else:
        shutil.copy(evil, library)
        library.chmod(0o775 if of == "the group" else 0o755)
    if of == "nobody":
        library.write_bytes(b"")  # as after a crash of the machine
    if of == "another" and os.geteuid() == 0:
        os.chown(library, NOBODY, NOBODY)
    elif of == "another":
        monkeypatch.setattr(building.os, "geteuid", lambda: NOBODY)
    assert answer(place) == 42


def test_a_compiler_that_failed_is_not_asked_again_until_it_changes(place: Path) -> None:
    command = compiler(place, "echo this is no C >&2; exit 1")
    for _ in range(3):
        with pytest.raises(NotBuilt, match="this is no C"):
            answer(place, command)
    assert (place / "asked").read_text() == "\n"
    compiler(place, 'exec cc "$@"')
    with pytest.raises(NotBuilt, match=r"remove .*failed to try again"):
        answer(place, command)
    compiler(place, 'exec cc "$@"', version="2")
    assert answer(place, command) == 42
    assert (place / "asked").read_text() == "\n\n"


def started(place: Path, prelude: str) -> subprocess.Popen[str]:
    """Another process that prints the answer; what it needs is imported before the ``prelude``."""
    script = f"""import ctypes, hashlib, os, pathlib, runpy, subprocess, tempfile
run = runpy.run_path({str(Path(building.__file__))!r})
tempfile.tempdir = {str(place / "tmp")!r}
{prelude}
print(run["loaded"](pathlib.Path({str(place / "source.c")!r}), ["cc", *{FLAGS}]).answer())"""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_processes_may_build_at_once(place: Path) -> None:
    processes = [started(place, "") for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["42\n"] * 3
    assert [path.suffix for path in kept(place)] == [".so"]


@pytest.mark.parametrize("mode", [0o500, 0o000], ids=["unwritable", "untraversable"])
@pytest.mark.parametrize("where", ["cache", "cache/vit2snn"])
def test_a_cache_that_this_user_cannot_use(place: Path, where: str, mode: int) -> None:
    (place / "cache" / "vit2snn").mkdir(parents=True)
    drop = ""
    if os.geteuid() == 0:  # whom no mode keeps out
        for path in (place / "cache", place / "cache" / "vit2snn", place / "tmp"):
            os.chown(path, NOBODY, NOBODY)
        drop = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    (place / where).chmod(mode)
    assert started(place, drop).communicate(timeout=60)[0] == "42\n"
    (place / where).chmod(0o755)
    assert not list((place / "tmp").iterdir())


def test_the_kernels_are_there_without_a_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    native.library.cache_clear()
    try:
        assert isinstance(native.library(), ctypes.CDLL)
    finally:
        native.library.cache_clear()
