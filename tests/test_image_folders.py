"""Folders and tar files of images: splits, classes, and what lies beside them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import make_vit
from PIL import Image

from vit2snn.cli import cli
from vit2snn.commands.images import image_mode
from vit2snn.commands.processes import own_images
from vit2snn.data import ImageSource, UnreadableError, choose, open_images, training_images, unlabelled_images
from vit2snn.errors import DataError, ModelError
from vit2snn.spiking import shards
from vit2snn.zoo.demo import demo_images


def write(root: Path, *names: str) -> Path:
    """Gray images, as bright as their number, and empty files where a name is not of an image."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ""):
            path.touch()
        else:
            Image.new("RGB", (8, 8), (number,) * 3).save(path)
    return root


def pack(root: Path) -> Path:
    """A folder as a tar file beside it."""
    path = root.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(root, ".")
    return path


def seen(source: ImageSource) -> dict[int, int]:
    """The label of each image by its brightness."""
    return {read().getpixel((0, 0))[0]: label for read, label in source.stream()}  # type: ignore[index]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("folders", "split", "read"),
    [
        ("train val", "train", "train"),
        ("train val test", "validation", "val"),
        ("train valid", "validation", "valid"),
        ("Train Test", "validation", "Test"),
        ("Train Test", "train", "Train"),
        ("training validation", "train", "training"),
        ("train val extra", "extra", "extra"),
        ("train val", "VAL", "val"),
    ],
)
def test_the_folder_of_a_split_is_read_and_told(folders: str, split: str, read: str, packed: bool, tmp_path: Path) -> None:
    root = write(tmp_path / "data", *(f"{folder}/{name}/0.png" for folder in folders.split() for name in "ab"))
    first = 2 * folders.split().index(read)
    for place in (root, tmp_path):  # a folder around all is looked into
        place = pack(place) if packed else place
        source = open_images(place, split, classes=2)
        assert seen(source) == {first: 0, first + 1: 1}
        assert source.notes[0].startswith("2 images are in ") and source.notes[0].endswith(f"/{read}")


@pytest.mark.parametrize(
    ("folders", "split", "message"),
    [
        ("train", "validation", "has no split 'validation', but 'train'"),
        ("train test", "tset", "has no split 'tset', but 'test', 'train'"),
        ("train val", "test", "has no split 'test', but 'train', 'val'"),
        ("val test", "train", "has no split 'train', but 'test', 'val'"),
        ("first second", "train", "has no split 'train', but 'first', 'second'"),
    ],
)
def test_no_other_split_is_read_in_the_place_of_one(folders: str, split: str, message: str, tmp_path: Path) -> None:
    root = write(tmp_path, *(f"{folder}/{name}/0.png" for folder in folders.split() for name in "ab"))
    with pytest.raises(DataError, match=message) as caught:
        open_images(root, split, classes=2)
    assert "--split" in caught.value.hint


def test_class_folders_without_splits_are_read_for_any_usual_split(tmp_path: Path) -> None:
    root = write(tmp_path, "train/0.png", "truck/0.png")  # a class of trains
    for split in ("train", "validation", "test"):
        assert seen(open_images(root, split, classes=2)) == {0: 0, 1: 1}
    with pytest.raises(DataError, match="has no split 'tset', and no splits at all"):
        open_images(root, "tset", classes=2)
    with pytest.raises(DataError, match="has images in 'train', 'val', and no class folders there"):
        open_images(write(tmp_path / "flat", "train/0.png", "val/0.png"), "validation", classes=2)


@pytest.mark.parametrize("packed", [False, True])
def test_what_lies_beside_the_images_is_passed_over_and_told(packed: bool, tmp_path: Path) -> None:
    root = write(
        tmp_path / "data", "a/0.png", "b/0.bmp", "b/1.webp", "b/2.TIF", "a/3.gif", ".git/x/0.png", "__MACOSX/a/0.png",
        "@eaDir/0.png", ".ipynb_checkpoints/0.png", "a/.0.png", "a/readme.txt", "b/.hidden/0.png", "loose.png",
        "empty/keep.txt",
    )  # fmt: skip
    source = open_images(pack(root) if packed else root, "train", classes=2)
    assert seen(source) == {0: 0, 1: 1, 2: 1, 3: 1, 4: 0}
    told = "\n".join(source.notes[1:])
    assert "1 images outside class folders: 'loose.png'" in told
    assert "2 files that are no images: 'a/readme.txt', 'empty/keep.txt'" in told
    assert "5 hidden folders: '.git', '.ipynb_checkpoints', '@eaDir', '__MACOSX', ..." in told
    assert "1 folders without images: 'empty'" in told


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "a/0.png", "c/0.png", "b/keep.txt")
    assert seen(open_images(root, "train", classes=2)) == {0: 0, 1: 1}
    with pytest.raises(DataError, match="2 class folders, the model tells 3 classes apart: 'a', 'c'"):
        open_images(root, "train", classes=3)  # 'b' may be a class, or notes
    (tmp_path / "map.txt").write_text("a\nb\nc")
    assert seen(open_images(root, "train", classes=3, class_map=tmp_path / "map.txt")) == {0: 0, 1: 2}


def test_class_folders_below_class_folders_are_refused_by_name(tmp_path: Path) -> None:
    root = write(tmp_path, "a/0.png", "b/0.png", "b/poodle/0.png")
    with pytest.raises(DataError, match=r"b/poodle/0.png' lies below the class folder 'b'"):
        open_images(root, "train", classes=2)


def test_links_are_followed_and_may_lead_back(tmp_path: Path) -> None:
    write(tmp_path / "far", "0.png")
    root = write(tmp_path / "data", "b/0.png")
    (root / "a").symlink_to(tmp_path / "far")
    (root / "b" / "again").symlink_to(root)
    source = open_images(root, "train", classes=2)
    assert source.labels == [0, 1]


def test_broken_links_and_pipes_are_told_by_name(tmp_path: Path) -> None:
    root = write(tmp_path, "a/0.png", "b/0.png")
    (root / "a" / "1.png").symlink_to("/nowhere/x.png")
    with pytest.raises(UnreadableError, match=r"a/1.png' is not an image .* No such file"):
        seen(open_images(root, "train", classes=2))
    (root / "a" / "1.png").unlink()
    os.mkfifo(root / "a" / "1.png")
    with pytest.raises(UnreadableError, match=r"a/1.png' is not an image .* no ordinary file"):
        seen(open_images(root, "train", classes=2))


def test_tar_files_with_links_and_damage(tmp_path: Path) -> None:
    root = write(tmp_path / "data", "a/0.png", "b/0.png")
    path = pack(root)
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("b/1.png", tarfile.LNKTYPE, "./b/0.png"), ("b/2.png", tarfile.SYMTYPE, "../a/0.png"),
            ("b/3.png", tarfile.SYMTYPE, "nowhere.png"),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member, io.BytesIO())
    source = open_images(path, "train", classes=2)
    assert source.read is not None
    assert [source.read(i)[0].getpixel((0, 0))[0] for i in range(4)] == [0, 1, 1, 0]  # type: ignore[index]
    with pytest.raises(UnreadableError, match=r"data.tar/b/3.png' .* no ordinary file"):
        source.read(4)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        cut = archive.getmember("./b/0.png").offset
    for content in (b"", b"no tar file" * 100, whole[:700], whole[:cut], whole[: cut + 9], whole[:cut] + b"x" * len(whole)):
        (tmp_path / "other.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"other\.tar"):
            open_images(tmp_path / "other.tar", "train", classes=2)


def test_fewer_classes_than_the_model_tells_apart_are_told(tmp_path: Path) -> None:
    root, names = write(tmp_path / "data", "a/0.png", "b/0.png"), tmp_path / "map.txt"
    names.write_text("a\nb\nc\n")
    source = open_images(root, "train", classes=3, class_map=names)
    assert source.notes[-1] == "they are of 2 classes, and the model tells 3 apart"


def test_pictures_of_unreadable_kinds_are_told_and_not_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path, "a/0.png", "b/0.png", "b/thumbs.txt")
    (root / "a" / "1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UnreadableError, match=r"a/1.HEIC' is not an image that can be read"):
        seen(open_images(root, "train", classes=2))


def test_models_of_other_channels_than_those_of_files_are_refused() -> None:
    assert [image_mode(make_vit(in_chans=channels)) for channels in (1, 3)] == ["L", "RGB"]
    with pytest.raises(ModelError, match="takes images of 4 channels, and those of files have 1 or 3"):
        image_mode(make_vit(in_chans=4))


# Lists of labels


def test_a_list_gives_the_classes_of_images(tmp_path: Path) -> None:
    root, table = write(tmp_path / "data", "0.png", "sub/1.png", "2.png", "3.png"), tmp_path / "labels.csv"
    table.write_text("path,class\n./0.png,ox\nsub/1.png,cat\n2.png,ox\n")
    source = open_images(root, "validation", classes=2, labels=table)
    assert seen(source) == {0: 1, 1: 0, 2: 1}
    assert "1 images that are not listed: '3.png'" in source.notes[1]
    table.write_text("0.png,4\n2.png,0\n")
    assert seen(open_images(root, "validation", classes=5, labels=table)) == {0: 4, 2: 0}
    names = tmp_path / "map.txt"
    names.write_text("7\n4\n0\n")
    assert seen(open_images(root, "validation", classes=3, labels=table, class_map=names)) == {0: 1, 2: 2}
    with pytest.raises(DataError, match="labels from 0 to 4, the model tells 4 classes apart"):
        open_images(root, "validation", classes=4, labels=table)
    table.write_text("0.png,a\n/etc/x.png,b\n../y.png,b\n")
    with pytest.raises(DataError, match=r"lists 2 images that are not in .* such as '../y.png'"):
        open_images(root, "validation", classes=2, labels=table)
    with pytest.raises(DataError, match="has labels of its own"):
        open_images("torch/cifar10", "validation", classes=10, labels=table)


def test_a_list_is_of_one_split(tmp_path: Path) -> None:
    root, table = write(tmp_path / "data", "train/0.png", "val/0.png", "val/1.png"), tmp_path / "labels.csv"
    table.write_text("0.png,1\n")
    assert seen(open_images(root, "train", classes=2, labels=table)) == {0: 1}
    assert seen(open_images(root, "validation", classes=2, labels=table)) == {1: 1}
    with pytest.raises(DataError, match="has no split 'test', but 'train', 'val'"):
        open_images(root, "test", classes=2, labels=table)


# Data sets that need packages, or have no labels


@pytest.mark.parametrize(
    ("name", "package"), [("hfds/x", "datasets"), ("hfids/x", "datasets"), ("tfds/x", "tensorflow_datasets")]
)
def test_missing_packages_are_told(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit2snn.data.opening.find_spec", lambda wanted: None)
    with pytest.raises(DataError, match=f"{name!r} is read by {package}, which is not installed") as caught:
        open_images(name, "train", classes=3)
    assert caught.value.hint.startswith("pip install ")


class Unlabelled:
    targets = (0, 1)

    def __len__(self) -> int:
        return 3


def test_fewer_labels_than_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **kwargs: Unlabelled())
    with pytest.raises(DataError, match="'torch/x' has 3 images and 2 labels"):
        open_images("torch/x", "train", classes=3)
    with pytest.raises(DataError, match="has no split 'tset', but 'train' and 'validation'"):
        open_images("torch/x", "tset", classes=3)
    with pytest.raises(DataError, match="has classes of its own"):
        open_images("torch/x", "train", classes=3, class_map="map.txt")


# Images that cannot be read


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Two classes of eight images, of which a/3 and b/5 are damaged."""
    root = write(tmp_path / "data", *(f"{name}/{i}.png" for name in "ab" for i in range(8)))
    for name in ("a/3.png", "b/5.png"):
        (root / name).write_bytes(b"no image")
    return root


def test_images_that_cannot_be_read_are_passed_over_where_that_is_asked_for(damaged: Path) -> None:
    told: list[str] = []
    source = open_images(damaged, "train", classes=2, skipped=lambda error: told.append(str(error)))
    for workers in (0, 3):
        chosen = list(choose(source, lambda image, label: image.getpixel((0, 0))[0], None, 0, workers=workers))
        assert chosen == [i for i in range(16) if i not in (3, 13)]
        assert len(told) == 2 and "a/3.png" in min(told) and "b/5.png" in max(told)
        told.clear()
    loader = training_images(make_vit(num_classes=2), source, 2)
    assert len(loader) == 7 and sum(len(labels) for _, labels in loader) == 14


@pytest.mark.parametrize("count", [None, 6, 10])
def test_processes_choose_the_images_of_one(count: int | None, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_images(damaged, "train", classes=2, skipped=lambda error: None)
    names = lambda of, number: list(choose(of, lambda image, label: image.getpixel((0, 0))[0], number, 0))  # noqa: E731
    alone, together = names(source, count), []
    monkeypatch.setattr(shards, "processes", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(shards, "share", lambda items, rank=rank: islice(items, rank, None, 2))
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        together += names(*own_images(source, count, 0))
    assert sorted(together) == sorted(alone)


def test_errors_of_workers_stay_what_they_are(damaged: Path) -> None:
    loader = training_images(make_vit(num_classes=2), open_images(damaged, "train", classes=2), 16, workers=1)
    with pytest.raises(UnreadableError, match=r"(a/3|b/5).png' is not an image that can be read: cannot identify") as caught:
        list(loader)
    assert "--skip-bad" in caught.value.hint


@pytest.mark.slow
def test_unlabelled_images_are_those_of_all_visible_folders(damaged: Path) -> None:
    write(damaged, ".git/0.png", "a/deep/er/0.jpg")
    source = unlabelled_images(damaged, skipped=lambda error: None)
    assert len(source.labels or []) == 17
    assert len(training_images(make_vit(num_classes=2), source, 1)) == 15


@pytest.mark.slow
def test_commands_tell_what_they_read(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split in ("train", "test"):
        images, labels = demo_images("train" if split == "train" else "val")
        for i in range(60):
            folder = root / split / str(labels[i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(folder / f"{i}.png")
    (root / "test" / str(labels[0]) / "bad.png").write_bytes(b"")
    out, data = str(tmp_path / "out"), ["--data", str(root)]
    run: Any = CliRunner().invoke
    result = run(cli, ["convert", "demo", "-o", out, "--timesteps", "2", "--samples", "32", *data])
    assert result.exit_code == 0, result.output
    assert f"note: 60 images are in {root}/train\n" in result.stderr
    read = {"data": str(root), "split": "train", "images": 60, "skipped": 0}
    run_json = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run_json["data"], run_json["read"]) == (str(root), read)
    assert f"* Calibrated on images of `{root}, split train: 60 images`.\n" in (tmp_path / "out" / "README.md").read_text()
    result = run(cli, ["evaluate", out, "--json", *data])
    assert result.exit_code == 1
    assert "bad.png' is not an image that can be read" in result.stderr
    result = run(cli, ["evaluate", out, "--json", "--skip-bad", *data])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 60
    assert f"note: 61 images are in {root}/test\n" in result.stderr
    assert "note: 1 images cannot be read and are passed over\n" in result.stderr and "bad.png" in result.stderr
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["read"] == {"data": str(root), "split": "test", "images": 61, "skipped": 1}
    assert run(cli, ["report", out]).exit_code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{root}, split test: 61 images, 1 of them passed over" in page and f"{root}, split train: 60 images" in page
    result = run(cli, ["evaluate", out, "--split", "tset", *data])
    assert result.exit_code == 1
    assert "has no split 'tset', but 'test', 'train'" in result.stderr
