from __future__ import annotations

import pickle
import tarfile
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_vit
from hypothesis import given, strategies as st
from PIL import Image
from safetensors.torch import save_file

from vit2snn.convert import load_model
from vit2snn.data import ImageSource, array_source, balanced_order, batches, choose, open_images, prepared
from vit2snn.data.ahead import AHEAD
from vit2snn.data.sources import indexed
from vit2snn.errors import CheckpointError, DataError, ModelError
from vit2snn.zoo.demo import demo_images


def write_folder(root: Path, classes: int = 3, each: int = 4) -> Path:
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(each):
            pixels = np.random.default_rng(label * 100 + index).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 5))
def test_every_beginning_of_the_order_is_balanced(labels: list[int], seed: int) -> None:
    order = balanced_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    available = Counter(labels)
    for count in range(len(labels)):
        chosen = Counter(labels[index] for index in order[:count])
        most = max(chosen.values(), default=0)
        assert all(chosen[label] >= min(most - 1, available[label]) for label in available)


def test_the_order_depends_on_the_seed_only() -> None:
    labels = [0, 1, 2] * 20
    assert balanced_order(labels, 1) == balanced_order(labels, 1)
    assert balanced_order(labels, 1) != balanced_order(labels, 2)


def test_a_folder_is_read_with_its_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", each=4)
    write_folder(tmp_path / "val", each=2)
    for split, count in (("train", 12), ("validation", 6)):
        source = open_images(tmp_path, split, classes=3)
        assert source.labels is not None
        assert len(source.labels) == count
        assert [label for _, label in source.stream()] == source.labels


def test_preparation_follows_the_configuration_of_the_model(tmp_path: Path) -> None:
    model = make_vit(num_classes=3)
    model.pretrained_cfg |= {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    samples = list(prepared(model, open_images(write_folder(tmp_path), "train", classes=3), count=5))
    assert len(samples) == 5
    assert all(sample.image.shape == (3, 16, 16) for sample in samples)
    assert -2.0 <= min(float(s.image.min()) for s in samples) < 0 < max(float(s.image.max()) for s in samples) <= 2.0
    assert len({sample.digest for sample in samples}) == 5


def test_excluded_images_are_passed_over_and_do_not_count() -> None:
    model, source = load_model("demo"), array_source(*demo_images("val"))
    first = list(prepared(model, source, count=10))
    rest = list(prepared(model, source, count=10, exclude=[s.digest for s in first[:4]]))
    assert [s.digest for s in rest[:6]] == [s.digest for s in first[4:]]
    assert len(rest) == 10


def test_embedded_calibration_and_scoring_images_are_disjoint() -> None:
    model = load_model("demo")
    calibration = {s.digest for s in prepared(model, array_source(*demo_images("train")))}
    scored = [s.digest for s in prepared(model, array_source(*demo_images("val")))]
    assert len(scored) >= 1000
    assert not calibration & set(scored)


def test_a_stream_gives_its_first_images() -> None:
    source = ImageSource(None, None, lambda: ((partial(Image.new, "L", (2, 2)), label) for label in range(100)))
    assert list(choose(source, lambda image, label: label, 3, 0)) == [0, 1, 2]
    assert list(choose(source, lambda image, label: label, 3, 0, lambda label: label % 2 == 0)) == [1, 3, 5]


def test_batches_are_full_but_for_the_last_and_never_none() -> None:
    samples = prepared(load_model("demo"), array_source(*demo_images("val")), count=10)
    assert [len(labels) for _, labels in batches(samples, 4)] == [4, 4, 2]
    with pytest.raises(DataError, match="no images to use"):
        list(batches([], 4))


def test_torchvision_data_sets_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    import hashlib

    from torchvision.datasets import CIFAR10

    batch = {
        "data": np.random.default_rng(0).integers(0, 255, (20, 3072), dtype=np.uint8),
        "labels": [i % 10 for i in range(20)],
    }
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    meta = {"label_names": [str(i) for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("test_batch", "batches.meta")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "test_list", [("test_batch", sums["test_batch"])])
        patch.setattr(CIFAR10, "train_list", [])
        patch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
        source = open_images("torch/cifar10", "validation", classes=10, root=tmp_path)
    assert source.labels == batch["labels"]
    read, label = next(source.stream())
    assert read().size == (32, 32)
    assert label == 0


def test_a_class_map_orders_the_classes(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("class2\nankle boot\nclass0\nclass1\n")
    source = open_images(write_folder(tmp_path / "data"), "train", classes=4, class_map=names)
    assert sorted(set(source.labels or [])) == [0, 2, 3]


@pytest.mark.parametrize(
    ("lines", "classes", "message"),
    [
        (None, 10, "3 class folders, the model tells 10 classes apart"),
        ("class0 class1", 2, "1 classes that the class map does not list, such as 'class2'"),
        ("class0 class1", 5, "names 2 classes, the model tells 5 apart"),
        ("dog cat bird", 3, "3 classes that the class map does not list, such as 'class0'"),
    ],
)
def test_classes_that_do_not_match_the_head_are_told(lines: str | None, classes: int, message: str, tmp_path: Path) -> None:
    root, names = write_folder(tmp_path / "data"), tmp_path / "names.txt"
    names.write_text((lines or "").replace(" ", "\n"))
    with pytest.raises(DataError, match=message):
        open_images(root, "train", classes=classes, class_map=names if lines else None)


def test_missing_empty_and_unreadable_data_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        open_images(tmp_path / "nowhere", "train", classes=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images in class folders"):
        open_images(tmp_path / "empty", "train", classes=3)
    root = write_folder(tmp_path / "data")
    (root / "class1" / "notes.png").write_text("not an image")
    source = open_images(root, "train", classes=3)
    with pytest.raises(DataError, match=r"class1/notes.png' is not an image"):
        [read() for read, _ in source.stream()]
    (tmp_path / "map.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match="cannot be read: 'utf-8' codec"):
        open_images(root, "train", classes=3, class_map=tmp_path / "map.pkl")


def test_a_truncated_image_is_told(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    path = root / "class0" / "0.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="is not an image that can be read"):
        [read() for read, _ in open_images(root, "train", classes=3).stream()]


# Weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_of_any_float_type_are_read(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    weights = {name: value.to(dtype) for name, value in load_model("demo").state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": weights, "epoch": 3}, path)
    else:
        save_file(weights, path)
    model = load_model("demo", path)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert all(torch.equal(value, weights[name].float()) for name, value in model.state_dict().items())


def test_checkpoints_that_do_not_fit_say_where(tmp_path: Path) -> None:
    weights = load_model("demo").state_dict()
    path = tmp_path / "weights.safetensors"
    save_file({k: v for k, v in weights.items() if k != "norm.bias"} | {"extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"norm.bias is missing; extra is not in the model"):
        load_model("demo", path)
    save_file(weights | {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}, path)
    with pytest.raises(CheckpointError, match=r"head.weight has shape \(5, 64\), the model \(10, 64\)") as error:
        load_model("demo", path)
    assert "--num-classes" in error.value.hint
    assert load_model("demo", path, num_classes=5).head.out_features == 5


class Evil:
    def __reduce__(self) -> object:
        return (print, ("code ran",))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_corrupt_and_dangerous_checkpoints_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_model("demo", path)
    for content in (b"", b"\x00" * 64, b"not a checkpoint at all"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_model("demo", path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model("demo", tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


def test_unknown_models_come_with_near_names() -> None:
    with pytest.raises(ModelError, match="no model 'deit_tiny_patch16_24'") as error:
        load_model("deit_tiny_patch16_24")
    assert "deit_tiny_patch16_224" in error.value.hint
    with pytest.raises(ModelError, match="hf-hub:"):
        load_model("timm/deit_tiny")
    with pytest.raises(ModelError, match="not a timm model folder"):
        load_model("local-dir:nowhere")
    with pytest.raises(ModelError, match=r"cannot create 'vit_tiny_patch16_224\.nonsense'"):
        load_model("vit_tiny_patch16_224.nonsense")


# Reading ahead


def numbered(count: int, seen: list[int]) -> ImageSource:
    """Images whose label is their index; ``seen`` gets what has been read."""

    def read(index: int) -> Image.Image:
        seen.append(index)
        return Image.new("L", (2, 2), index)

    return indexed(list(range(count)), read)


def label_of(image: Image.Image, label: int) -> int:
    assert image.getpixel((0, 0)) == label
    return label


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_read_ahead_is_what_is_read_one_by_one(workers: int) -> None:
    model, source = load_model("demo"), array_source(*demo_images("val"))
    wanted = list(prepared(model, source, count=60, seed=3))
    left_out = [sample.digest for sample in wanted[5:9]]
    for exclude in ([], left_out):
        one, other = (
            [(s.digest, s.label) for s in prepared(model, source, count=60, seed=3, exclude=exclude, workers=n)]
            for n in (0, workers)
        )
        assert one == other and len(one) == 60
    stream = ImageSource(None, None, source.stream)
    assert [s.digest for s in prepared(model, stream, count=40, workers=workers)] == [
        s.digest for s in prepared(model, stream, count=40)
    ]


def test_a_settled_order_is_kept() -> None:
    for order in ([], [3, 1, 2]):
        source = replace(numbered(5, []), order=order)
        for count in (None, 4):
            assert list(choose(source, label_of, count, 0)) == order
    assert list(choose(source, label_of, 2, 0, workers=2)) == [3, 1]


@pytest.mark.parametrize("streamed", [False, True])
def test_reading_ahead_is_bounded_and_ends_with_the_reader(streamed: bool) -> None:
    before, seen = threading.active_count(), list[int]()
    source = numbered(200, seen)
    if streamed:
        source = ImageSource(None, None, source.stream)
    reading = choose(source, label_of, None, 0, workers=2)
    assert [next(reading) for _ in range(3)] == [0, 1, 2]
    assert threading.active_count() > before
    reading.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(seen) <= 3 + 3 * AHEAD


def test_images_are_read_while_others_are_computed_on() -> None:
    """The second image is read although nobody has asked for it."""
    read = threading.Event()

    def prepare(image: Image.Image, label: int) -> int:
        if label == 1:
            read.set()
        return label

    reading = choose(numbered(2, []), prepare, None, 0, workers=1)
    assert next(reading) == 0
    assert read.wait(timeout=10)
    assert list(reading) == [1]


def test_an_image_that_cannot_be_read_is_told_where_it_would_come(tmp_path: Path) -> None:
    model = make_vit(num_classes=3)
    write_folder(tmp_path)
    (tmp_path / "class1" / "0.png").write_bytes(b"no image")
    reading = prepared(model, open_images(tmp_path, "train", classes=3), workers=2)
    assert [next(reading).label for _ in range(4)] == [0] * 4
    with pytest.raises(DataError, match=r"class1/0.png' is not an image that can be read"):
        next(reading)


def test_threads_read_a_tar_file_as_its_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", each=30)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for path in sorted(folder.glob("*/*")):
            archive.add(path, path.relative_to(folder))
    model = make_vit(num_classes=3)
    wanted = [s.digest for s in prepared(model, open_images(folder, "train", classes=3))]
    for _ in range(3):
        source = open_images(tmp_path / "images.tar", "train", classes=3)
        assert [s.digest for s in prepared(model, source, workers=4)] == wanted
    with pytest.raises(DataError, match="3 class folders, the model tells 4 classes apart"):
        open_images(tmp_path / "images.tar", "train", classes=4)


def test_batches_are_pinned_where_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = list(prepared(load_model("demo"), array_source(*demo_images("val")), count=4))
    moved: list[torch.Size] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: moved.append(x.shape) or x)
    list(batches(samples, 4))
    assert moved == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    list(batches(samples, 4))
    assert moved == [(4, 1, 28, 28)]
