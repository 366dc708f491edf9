"""Images in folders, on disk or in a tar file: those of a split, and the class of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from posixpath import join, normpath

from PIL import Image

from ..errors import DataError
from .names import class_order, natural, read_class_map, read_labels, some
from .pictures import decoded, is_image
from .sources import UNLABELLED, ImageSource, indexed
from .splits import SOUGHT, find_split
from .trees import Tree, open_tree


def open_folder(
    path: str | Path, split: str, classes: int, mode: str, class_map: str | Path | None = None, labels: str | Path | None = None
) -> ImageSource:
    """The images of a split in a folder or tar file, sorted as timm sorts them.

    A class is a folder of images, or what a list of labels says. Hidden folders, and files that are no images, are passed over;
    the notes tell how many.

    Args:
        path: of the folder that holds the class folders, or folders of splits (see `part_of`) that do.
        split: which.
        classes: how many classes the model tells apart; 0 for a model without, whose images may lie in no class folders.
        mode: PIL's image mode, ``RGB`` or ``L``.
        class_map: see `vit2snn.data.names.read_class_map`.
        labels: a table of paths, relative to the folder of the split or else of all, and classes: numbers from 0 on, or names.

    Raises:
        DataError: there are no such images, or their classes are not certain to be those of the model.
    """
    tree = open_tree(path)
    part = part_of(tree, split, flat=labels is not None or not classes)
    place = str(Path(tree.place, part))
    if labels is None:
        known, notes = _classed(tree, part, place, classes, class_map)
    else:
        known, notes = _listed(tree, part, place, classes, class_map, labels)
    names = sorted(known, key=natural)

    def read(index: int) -> Image.Image:
        name = names[index]
        return decoded(lambda: tree.opened(name), mode, tree.told(name))

    return indexed([known[name] for name in names], read, f"{len(names)} images are in {place}", *notes, split=part)


def part_of(tree: Tree, split: str, flat: bool = False) -> str:
    """The folder of a split in a tree; the empty path where the tree has no splits, and so holds the class folders itself.

    ``train`` may be called ``training``, and ``validation`` ``val``, ``valid``, ``evaluation`` or ``eval``, as in timm, or,
    where there is none of these, ``test``. A folder around all, as in many archives, is looked into.

    Args:
        tree: what is looked through.
        split: its name, whatever its case.
        flat: whether folders of splits may hold images themselves.

    Raises:
        DataError: there are splits, and not this one; or the images are in folders of splits, and not of classes.
    """
    around = ""
    while (inner := _only(tree, around)) and inner.lower() not in {split.lower(), *SOUGHT}:
        around = join(around, inner)
    place, folders = str(Path(tree.place, around)), tree.listed(around).folders
    deep = [name for name in folders if _is_deep(tree, join(around, name))]
    parts = [name for name in (folders if flat else deep) if name.lower() in {split.lower(), *SOUGHT}]
    parts = parts or (deep if deep == folders else [])
    found = find_split(split, parts)
    if found:
        return join(around, found)
    if parts:
        raise DataError(f"{place!r} has no split {split!r}, but {some(parts)}", f"say which is meant: --split {parts[0]}")
    if split.lower() not in SOUGHT:
        raise DataError(f"{place!r} has no split {split!r}, and no splits at all", "leave --split out, or name a folder")
    if not flat and folders and all(name.lower() in SOUGHT for name in folders):
        raise DataError(
            f"{place!r} has images in {some(folders)}, and no class folders there", "name their classes with --labels FILE"
        )
    return around


def _is_deep(tree: Tree, folder: str) -> bool:
    """Whether a folder holds folders, and no images."""
    found = tree.listed(folder)
    return bool(found.folders) and not found.images


def _only(tree: Tree, folder: str) -> str | None:
    """The one folder in a folder that has no images beside it, where that holds folders itself."""
    found = tree.listed(folder)
    only = found.folders[0] if len(found.folders) == 1 and not found.images else None
    return only if only and _is_deep(tree, join(folder, only)) else None


def _classed(tree: Tree, part: str, place: str, classes: int, class_map: str | Path | None) -> tuple[dict[str, int], list[str]]:
    """The labels of the images in class folders by path, and notes."""
    top = tree.listed(part)
    inside = {name: tree.listed(join(part, name)) for name in top.folders}
    for name, listing in inside.items():
        for folder in listing.folders:
            _refuse_images(tree, join(part, name, folder), name)
    full = [name for name, listing in inside.items() if listing.images]
    if not full and not classes and top.images:
        return {join(part, image): UNLABELLED for image in top.images}, ["they lie in no class folders, and so have no labels"]
    if not full:
        raise DataError(f"{place!r} holds no images in class folders", "give the folder that holds the class folders")
    order = class_order(full, classes, place) if class_map is None else read_class_map(class_map, classes, full)
    passed_over = {
        "images outside class folders": top.images,
        "files that are no images": top.others + [join(name, file) for name in inside for file in inside[name].others],
        "hidden folders": top.hidden + [join(name, folder) for name in inside for folder in inside[name].hidden],
        "folders without images": sorted(set(inside) - set(full)),
    }
    return {join(part, name, image): order[name] for name in full for image in inside[name].images}, _told(passed_over)


def _refuse_images(tree: Tree, folder: str, name: str) -> None:
    for path in tree.below(folder):
        if is_image(path):
            raise DataError(
                f"{tree.told(path)} lies below the class folder {name!r}, in a folder of its own",
                "give the folder that holds the class folders, or list the classes of images with --labels FILE",
            )


def _listed(
    tree: Tree, part: str, place: str, classes: int, class_map: str | Path | None, table: str | Path
) -> tuple[dict[str, int], list[str]]:
    """The labels of the images in a table by path, and notes."""
    listed = {normpath(join(part, path)): name for path, name in read_labels(table).items()}
    there = set(tree.below(part))
    missing = sorted(set(listed) - there, key=natural)
    if missing:
        raise DataError(
            f"{str(table)!r} lists {len(missing)} images that are not in {tree.place!r}, such as {missing[0]!r}",
            f"write their paths relative to {place!r}",
        )
    names = set(listed.values())
    if class_map is not None:
        order = read_class_map(class_map, classes, names)
    elif all(re.fullmatch(r"\d{1,9}", name) for name in names):
        order = {name: int(name) for name in names}
    else:
        order = class_order(names, classes, str(table), "classes")
    unlisted = [path for path in sorted(there - set(listed), key=natural) if is_image(path)]
    return {path: order[name] for path, name in listed.items()}, _told({"images that are not listed": unlisted})


def _told(passed_over: Mapping[str, list[str]]) -> list[str]:
    return [f"passed over: {len(names)} {what}: {some(names)}" for what, names in passed_over.items() if names]
