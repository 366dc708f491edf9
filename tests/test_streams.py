"""Tar files in WebDataset's format, read in order, by one process and by two. As a script, this file is one of the two."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from PIL import Image
from test_shards import launch

from vit2snn.commands.processes import own_images
from vit2snn.data import ImageSource, choose, open_images
from vit2snn.errors import DataError


def picture(gray: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (gray,) * 3).save(file, kind)
    return file.getvalue()


def pack(path: Path, **files: bytes) -> None:
    """A tar file; in the names of files, ``__`` stands for a dot."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three tar files with 4, 4 and 3 images, as bright as their number; the class is the number modulo 3."""
    files = ["train-0.tar", "train-1.tar", "train-2.tar"]
    for place, numbers in zip(files, (range(4), range(4, 8), range(8, 11)), strict=True):
        content = {f"x{i:02d}__{kind}": data for i in numbers for kind, data in (("cls", b"%d" % (i % 3)), ("png", picture(i)))}
        pack(tmp_path / place, **content)
    splits = {"train": {"filenames": files}, "test": {"filenames": files[2:]}}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    return tmp_path


def seen(source: ImageSource, count: int | None = None) -> list[tuple[int, int]]:
    """Brightness and label of the images that are chosen."""
    return list(choose(source, lambda image, label: (image.getpixel((0, 0))[0], label), count, 0))


def wanted(numbers: range) -> list[tuple[int, int]]:
    return [(number, number % 3) for number in numbers]


def test_images_are_read_in_order(root: Path) -> None:
    for split, found, numbers in (
        ("train", "train", range(11)), ("validation", "test", range(8, 11)),
        ("train-{0..1}.tar", "train-{0..1}.tar", range(8)), ("train-1.tar|4", "train-1.tar|4", range(4, 8)),
    ):  # fmt: skip
        source = open_images("wds/x", split, classes=3, root=root)
        assert (source.labels, source.split, seen(source), seen(source)) == (None, found, wanted(numbers), wanted(numbers))
    assert source.notes == (f"images are of the split 'train-1.tar|4' of wds/x: 1 tar files in {root}",)


@pytest.mark.slow
def test_two_processes_see_each_image_once(root: Path) -> None:
    """Readers that share among processes themselves would be shared twice."""
    shares = [json.loads(printed) for printed, _ in launch(__file__, root)]
    for part, numbers in (("all", range(11)), ("six", range(6))):
        assert sorted(tuple(pair) for share in shares for pair in share[part]) == wanted(numbers)
        assert abs(len(shares[0][part]) - len(shares[1][part])) <= 1


def test_images_that_cannot_be_read_are_told_or_passed_over(root: Path) -> None:
    pack(root / "train-1.tar", a__png=b"no image", a__cls=b"1", __b__png=b"", b__JPG=picture(200, "JPEG"), b__cls=b"2\n")
    told: list[str] = []
    source = open_images("wds/x", "train", classes=3, root=root, skipped=lambda error: told.append(str(error)))
    assert seen(source) == [*wanted(range(4)), (200, 2), *wanted(range(8, 11))]
    assert len(told) == 1 and "train-1.tar/a' is not an image that can be read" in told[0]
    with pytest.raises(DataError, match=r"train-1.tar/a' is not an image that can be read") as caught:
        seen(open_images("wds/x", "train", classes=3, root=root))
    assert "--skip-bad" in caught.value.hint


def test_labels_may_be_in_json_and_below_zero(root: Path) -> None:
    labels = [{"other": 2}, {"other": -1}, {"other": 0}]
    files = {f"d/{i}__{kind}": data for i, label in enumerate(labels) for kind, data in (
        ("json", json.dumps(label).encode()), ("webp", picture(i, "WEBP"))
    )}  # fmt: skip
    pack(root / "train-0.tar", **files)
    (root / "_info.json").write_text(json.dumps({"splits": {"train": {"filenames": ["train-0.tar"], "alt_label": "other"}}}))
    assert [label for _, label in seen(open_images("wds/x", "train", classes=3, root=root))] == [2, 0]


def test_names_of_classes_need_a_class_map(root: Path, tmp_path: Path) -> None:
    pack(root / "train-0.tar", a__png=picture(0), a__cls=b"ox", b__png=picture(1), b__cls=b"cat\r\n")
    names = tmp_path / "map.txt"
    names.write_text("cat\nox\n")
    options: dict[str, Any] = {"split": "train-0.tar", "root": root}
    assert seen(open_images("wds/x", classes=2, class_map=names, **options)) == [(0, 1), (1, 0)]
    with pytest.raises(DataError, match="names a class 'ox', and not which of the model's it is") as caught:
        seen(open_images("wds/x", classes=2, **options))
    assert "--class-map" in caught.value.hint
    names.write_text("cat\ndog\n")
    with pytest.raises(DataError, match="has the class 'ox', which the class map does not list"):
        seen(open_images("wds/x", classes=2, class_map=names, **options))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a__png": picture(0), "b__png": picture(1)}, r"train-0.tar/a' is no image with its label \(cls\), it has png"),
        ({"a__cls": b"1", "a__txt": b""}, r"train-0.tar/a' is no image with its label \(cls\), it has cls, txt"),
        ({"a__cls": b"1", "a__png": picture(0), "a__jpg": b""}, r"is no image with its label \(cls\), it has cls, png, jpg"),
        ({"a__png": picture(0), "a__cls": b"7"}, "has label 7, the model tells 3 classes apart"),
    ],
)
def test_samples_that_are_not_whole_are_told(files: dict[str, bytes], message: str, root: Path) -> None:
    pack(root / "train-0.tar", **files)
    with pytest.raises(DataError, match=message):
        seen(open_images("wds/x", "train", classes=3, root=root))


def test_tar_files_that_are_cut_off_or_missing_are_told(root: Path) -> None:
    path = root / "train-2.tar"
    whole = path.read_bytes()
    for count, read in ((0, 8), (700, 8), (512, 8), (1024 + 9, 8), (2048 + 512, 8), (3 * 2048, 10)):
        path.write_bytes(whole[:count])
        with pytest.raises(DataError, match=f"cannot be read after {read} images: "):
            seen(open_images("wds/x", "train", classes=3, root=root))
    path.unlink()
    with pytest.raises(DataError, match=r"cannot be read after 8 images: .*No such file"):
        seen(open_images("wds/x", "train", classes=3, root=root))


def test_data_sets_that_cannot_be_opened(root: Path) -> None:
    with pytest.raises(DataError, match="does not tell where its tar files are"):
        open_images("wds/x", "train", classes=3)
    with pytest.raises(DataError, match="has no split 'tset', but 'test', 'train'"):
        open_images("wds/x", "tset", classes=3, root=root)
    (root / "_info.json").write_text('{"splits": {"train": {}}}')
    with pytest.raises(DataError, match="cannot be opened: it has no list of its files"):
        open_images("wds/x", "train", classes=3, root=root)
    (root / "_info.json").unlink()
    with pytest.raises(DataError, match=r"no _info.json or info.json in .* tells its splits") as caught:
        open_images("wds/x", "train", classes=3, root=root)
    assert "--split 'train-{0000..0127}.tar'" in caught.value.hint


if __name__ == "__main__":
    dist.init_process_group("gloo")
    images = open_images("wds/x", "train", classes=3, root=sys.argv[1])
    print(json.dumps({name: seen(*own_images(images, count, 0)) for name, count in (("all", None), ("six", 6))}))
    dist.destroy_process_group()
