"""Tar files in WebDataset's format, each image beside its label in them, read in order: ``wds/NAME``."""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from ..errors import DataError
from .names import labels_as_they_come, some
from .pictures import decoded, is_image
from .sources import ImageSource, Pending
from .splits import find_split
from .trees import is_hidden

DESCRIPTIONS = ("_info.json", "info.json")
"""What tells the splits of a data set, as timm has it: of each, ``filenames``, and maybe ``alt_label``."""
_RANGE = re.compile(r"(.*?)\{(\d{1,9})\.\.(\d{1,9})\}(.*)")


def open_shards(
    name: str, split: str, classes: int, mode: str, root: str | Path | None, class_map: str | Path | None
) -> ImageSource:
    """A data set of tar files in a folder or at an address that ``fsspec`` opens.

    A sample is what follows each other under one name: an image, and its label in ``.cls``, or in ``.json`` under the key that
    the description of the split calls ``alt_label``; where that is below 0, the sample is left out, as in timm.

    Args:
        name: for messages.
        split: of the description; or the tar files themselves, such as ``train-{0000..0127}.tar``.
        classes: how many classes the model tells apart.
        mode: PIL's image mode, ``RGB`` or ``L``.
        root: where the tar files are.
        class_map: see `vit2snn.data.names.read_class_map`.

    Raises:
        DataError: there is no such split; or, as it is read, a sample has no image or label. Of damaged tar files comes what
            ``tarfile`` raises.
    """
    if root is None:
        raise DataError(f"{name!r} does not tell where its tar files are", "say it with --data-dir")
    found, files, key = _split(name, split, str(root))
    labelled = labels_as_they_come(None, classes, name, class_map)

    def stream() -> Iterator[Pending]:
        for place, sample in chain.from_iterable(_samples(posixpath.join(str(root), file)) for file in files):
            image, label = _content(sample, key, place)
            if not label.startswith("-"):
                yield partial(decoded, partial(BytesIO, image), mode, place), labelled(label)

    note = f"images are of the split {found!r} of {name}: {len(files)} tar files in {root}"
    return ImageSource(None, None, stream, found, notes=(note,))


def _split(name: str, split: str, root: str) -> tuple[str, list[str], str]:
    """The split that is meant, its files, and the key of its labels."""
    if ".tar" in split:
        return split, list(_expanded(split.split("|")[0])), ""
    try:
        splits = _described(root)
        found = find_split(split, splits)
        if found is not None:
            return found, list(splits[found]["filenames"]), str(splits[found].get("alt_label") or "")
    except Exception as error:  # of what is at an address, libraries raise whatever they run into
        told = "it has no list of its files" if isinstance(error, (KeyError, TypeError, AttributeError)) else error
        raise DataError(f"{name!r} cannot be opened: {told}", "name its tar files: --split 'train-{0000..0127}.tar'") from error
    raise DataError(f"{name!r} has no split {split!r}, but {some(splits)}", f"say which is meant: --split {next(iter(splits))}")


def _expanded(names: str) -> Iterator[str]:
    """``train-{08..10}.tar`` as names: ``train-08.tar`` to ``train-10.tar``."""
    match = _RANGE.fullmatch(names)
    if match is None:
        yield names
        return
    before, first, last, after = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{before}{number:0{len(first)}}{after}")


def _described(root: str) -> dict[str, Any]:
    """The splits of a data set, of which there is at least one."""
    import fsspec

    for file in DESCRIPTIONS:
        try:
            with fsspec.open(posixpath.join(root, file), "rb") as opened:
                splits: dict[str, Any] = json.load(opened)["splits"]
        except FileNotFoundError:
            continue
        if splits:
            return splits
    raise FileNotFoundError(f"no {' or '.join(DESCRIPTIONS)} in {root!r} tells its splits")


def _samples(url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """What a tar file holds, sample by sample: its name, for messages, and its files by their endings."""
    for (folder, stem), files in groupby(_files(url), lambda file: _named(file[0])[:2]):
        yield repr(posixpath.join(url, folder, stem)), {_named(name)[2]: content for name, content in files}


def _named(path: str) -> tuple[str, str, str]:
    """Folder, name and ending of a file; the ending is all from the first dot on."""
    folder, name = posixpath.split(path)
    stem, _, ending = name.partition(".")
    return folder, stem, ending.lower()


def _files(url: str) -> Iterator[tuple[str, bytes]]:
    """The files in a tar file, without what systems hide there."""
    import fsspec

    with fsspec.open(url, "rb") as opened, tarfile.open(fileobj=opened) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None and not any(map(is_hidden, posixpath.normpath(member.name).split("/"))):
                yield member.name, content.read()
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"{url!r} is cut off or damaged")  # where tarfile ends without a word


def _content(sample: Mapping[str, bytes], key: str, place: str) -> tuple[bytes, str]:
    """The image of a sample, and what it says of its class."""
    images = [ending for ending in sample if is_image(f"x.{ending}")]
    images = [ending for ending in images if "." not in ending] or images  # beside x.jpg, x.mask.png is something else
    try:
        label = json.loads(sample["json"])[key] if key else sample["cls"].decode()
        (image,) = images
    except (LookupError, ValueError, TypeError) as error:
        wanted = f"json with {key!r}" if key else "cls"
        raise DataError(
            f"{place} is no image with its label ({wanted}), it has {', '.join(sample)}",
            "what belongs together must follow each other: tar --sort=name",
        ) from error
    return sample[image], str(label).strip()
