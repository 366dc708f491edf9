"""What lies in a folder, or in a tar file, but for what systems and programs hide there."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError
from .pictures import is_image

_LITTER = frozenset(["__MACOSX", "__pycache__", "$RECYCLE.BIN", "System Volume Information", "lost+found"])


@dataclass
class Listing:
    """The names in a folder: of folders, of images, of other files, and of hidden folders; hidden files are left out."""

    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    def add_file(self, name: str) -> None:
        """Enter a file, unless it is hidden."""
        if not is_hidden(name):
            (self.images if is_image(name) else self.others).append(name)


@dataclass(frozen=True)
class Tree:
    """Folders and files below a place, by their paths in it, such as ``cat/0.png``; the place itself is the empty path.

    Attributes:
        place: where it is, for messages.
        listed: what a folder holds.
        opened: opens a file.
    """

    place: str
    listed: Callable[[str], Listing]
    opened: Callable[[str], BinaryIO]

    def told(self, name: str) -> str:
        """A path, for messages."""
        return repr(os.path.join(self.place, name))

    def below(self, folder: str) -> Iterator[str]:
        """The paths of all files in a folder and the folders below."""
        found = self.listed(folder)
        yield from (posixpath.join(folder, name) for name in (*found.images, *found.others))
        for name in found.folders:
            yield from self.below(posixpath.join(folder, name))


def is_hidden(name: str) -> bool:
    """Whether a name is of what is put beside a user's files, such as ``.git``, ``@eaDir`` or ``__MACOSX``."""
    return name.startswith((".", "@")) or name in _LITTER


def open_tree(path: str | Path) -> Tree:
    """A folder or a tar file that is not compressed.

    Raises:
        DataError: there is none; a folder in it cannot be read, when it is listed.
    """
    if not os.path.exists(path):
        raise DataError(f"there is no folder {str(path)!r}", "give a folder, or a data set such as hfds/NAME or torch/NAME")
    return _folder(Path(path)) if os.path.isdir(path) else _archive(Path(path))


def _folder(root: Path) -> Tree:
    @cache
    def listed(folder: str) -> Listing:
        found = Listing()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        if not _leads_back(entry):
                            (found.hidden if is_hidden(entry.name) else found.folders).append(entry.name)
                    else:
                        found.add_file(entry.name)
        except OSError as error:
            raise DataError(f"the folder {str(root / folder)!r} cannot be read: {error}") from error
        return found

    def opened(name: str) -> BinaryIO:
        path = root / name
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("it is no ordinary file")
        return path.open("rb")

    return Tree(str(root), listed, opened)


def _leads_back(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return entry.is_symlink() and any(os.path.samefile(entry.path, parent) for parent in Path(entry.path).parents)


def _archive(path: Path) -> Tree:
    """A tar file. Its files are read by their places in it, so that neither threads nor processes share a handle."""
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as file:
            members = {_inner(member.name): member for member in archive}
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where tarfile ends without a word
                raise tarfile.ReadError("it is cut off or damaged")
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{str(path)!r} is neither a folder nor a tar file, uncompressed: {error}", "unpack it") from error
    listings = {"": Listing()}
    for name, member in members.items():
        _enter(listings, name, member.isdir())

    def opened(name: str) -> BinaryIO:
        member = _followed(members, name)
        if member is None or not member.isreg():
            raise OSError("it is no ordinary file")
        with path.open("rb") as file:
            file.seek(member.offset_data)
            return BytesIO(file.read(member.size))

    return Tree(str(path), lambda folder: listings[folder], opened)


def _inner(name: str) -> str:
    """A path in an archive without what it may begin with, ``/`` or ``./``."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def _enter(listings: dict[str, Listing], name: str, is_folder: bool) -> None:
    """Add a member of an archive to the folder that it is in, and that to the one above."""
    folder = ""
    *above, last = name.split("/")
    for part in [*above, last] if is_folder else above:
        listing, path = listings[folder], posixpath.join(folder, part)
        if is_hidden(part):
            listing.hidden += [] if part in listing.hidden else [part]
            return
        if path and path not in listings:
            listings[path] = Listing()
            listing.folders.append(part)
        folder = path
    if not is_folder:
        listings[folder].add_file(last)


def _followed(members: Mapping[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo | None:
    """The member of a name, or the one that it links to."""
    member = members[name]
    if member.issym():
        return members.get(_inner(posixpath.join(posixpath.dirname(name), member.linkname)))
    return members.get(_inner(member.linkname)) if member.islnk() else member
