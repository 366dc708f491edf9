from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from vit2snn.cli import cli
from vit2snn.data import event_batches, is_events, open_events, training_events
from vit2snn.errors import DataError


def write_recording(path: Path, events: list[tuple[int, int, int, int]]) -> None:
    """Events (x, y, polarity, microseconds) in the format of N-MNIST: x, y, then a polarity bit and 23 bits of time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for x, y, p, t in events))


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two classes that differ by where the events fall: left or right."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for label, start in (("0", 0), ("1", 17)):
            for i in range(count):
                place = rng.integers(0, 17, (200, 2)) + np.array([start, 8])
                times = np.sort(rng.integers(0, 300_000, 200))
                events = [(int(x), int(y), int(n % 2), int(t)) for n, ((x, y), t) in enumerate(zip(place, times, strict=True))]
                write_recording(tmp_path / "data" / split / label / f"{i}.bs2", events)
    return tmp_path / "data"


def test_events_are_counted_by_polarity_pixel_and_time(tmp_path: Path) -> None:
    write_recording(tmp_path / "train" / "7" / "a.bin", [(3, 1, 1, 0), (3, 1, 1, 10), (0, 33, 0, 60), (5, 5, 1, 100)])
    source = open_events(str(tmp_path), "train", classes=1)
    assert source.labels == [0]
    frames = source.frames(0, 2, (34, 34))
    assert frames.shape == (2, 2, 34, 34)
    assert frames.dtype == torch.float32
    assert frames[0, 1, 1, 3] == 2  # ON is channel 1; y before x
    assert frames[1, 0, 33, 0] == 1
    assert frames.sum() == 3  # the last event ends the recording: tonic's bins are open
    assert source.frames(0, 2, (17, 17))[0, 1, 0, 1] == pytest.approx(0.5)
    assert source.frames(0, 2, (68, 68)).sum() == 12


@pytest.mark.parametrize(
    ("events", "lost", "message"),
    [
        ([], 0, "it has 0 bytes, and an event 5: it is empty or cut off"),
        ([(1, 2, 0, 0), (3, 4, 1, 9)], 2, "it has 8 bytes, and an event 5: it is empty or cut off"),
        ([(1, 2, 0, 0), (34, 4, 1, 9)], 0, "it has events at x = 34, y = 4, its sensor 34 x 34 pixels"),
    ],
)
def test_damaged_recordings_are_told_by_name(
    events: list[tuple[int, int, int, int]], lost: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "train" / "7" / "a.bin"
    write_recording(path, events)
    path.write_bytes(path.read_bytes()[: 5 * len(events) - lost])
    with pytest.raises(DataError, match=f"train/7/a.bin' is not a recording that can be read: {message}"):
        open_events(str(tmp_path), "train", classes=1).frames(0, 3, (32, 32))
    skipped: list[str] = []
    with pytest.raises(DataError, match="holds no recordings that can be read"):
        open_events(str(tmp_path), "train", classes=1, skipped=lambda error: skipped.append(str(error)))
    write_recording(tmp_path / "train" / "8" / "b.bin", [(1, 2, 0, 0), (3, 4, 1, 9)])
    source = open_events(str(tmp_path), "train", classes=2, skipped=lambda error: skipped.append(str(error)))
    assert source.labels == [1] and source.frames(0, 1, (34, 34)).sum() == 1
    assert len(skipped) == 2 and message in skipped[0]


def test_the_split_of_recordings_is_not_guessed(recordings: Path) -> None:
    (recordings / ".git" / "a" / "b").mkdir(parents=True)
    assert is_events(str(recordings))
    assert len(open_events(str(recordings), "test", classes=2).labels) == 16
    (recordings / "train").rename(recordings / "Train")
    assert len(open_events(str(recordings), "train", classes=2).labels) == 48
    with pytest.raises(DataError, match="has no split 'tset', but 'test', 'Train'"):
        open_events(str(recordings), "tset", classes=2)
    with pytest.raises(DataError, match="has no split 'tset', but 'train' and 'test'"):
        open_events("tonic/NMNIST", "tset", classes=10)


def test_classes_of_recordings_are_those_of_the_model(recordings: Path, tmp_path: Path) -> None:
    data = str(recordings)
    with pytest.raises(DataError, match="has 2 class folders, the model tells 11 classes apart: '0', '1'"):
        open_events(data, "train", classes=11)
    names = tmp_path / "map.txt"
    names.write_text("1\nother\n0\n")
    source = open_events(data, "validation", classes=3, class_map=names)
    assert source.labels == [2] * 8 + [0] * 8 and source.split == "test"
    assert source.notes[1:] == ("they are of 2 classes, and the model tells 3 apart",)
    with pytest.raises(DataError, match="has classes of its own"):
        open_events("tonic/NMNIST", "train", classes=10, class_map=names)


def test_batches_have_time_first(recordings: Path) -> None:
    assert is_events(str(recordings))
    assert is_events("tonic/NMNIST")
    assert not is_events(str(recordings.parent))
    source = open_events(str(recordings), "train", classes=2)
    x, y = next(iter(training_events(source, 5, (32, 32), 6)))
    assert x.shape == (5, 6, 2, 32, 32)
    assert y.shape == (6,)
    batches = list(event_batches(open_events(str(recordings), "validation", classes=2), 5, (32, 32), 6))
    assert [len(labels) for _, labels in batches] == [6, 6, 4]
    chosen = list(event_batches(source, 5, (32, 32), 16, count=10))
    assert chosen[0][1].bincount().tolist() == [5, 5]
    ahead = list(event_batches(source, 5, (32, 32), 16, count=10, workers=2))
    assert torch.equal(ahead[0][0], chosen[0][0]) and torch.equal(ahead[0][1], chosen[0][1])


def test_recordings_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="holds no recordings"):
        open_events(str(tmp_path), "train", classes=2)
    with pytest.raises(DataError, match="no data set 'MNIST3'"):
        open_events("tonic/MNIST3", "train", classes=2)
    monkeypatch.setitem(sys.modules, "tonic", None)
    with pytest.raises(DataError, match="tonic, which is not installed") as caught:
        open_events("tonic/NMNIST", "train", classes=2)
    assert caught.value.hint == "pip install 'vit2snn[events]'"


class Recorded:
    """A data set as tonic makes them, with a split or without."""

    sensor_size = (8, 6, 2)

    def __init__(self, save_to: str) -> None:
        if save_to == "nowhere":
            raise OSError("no such place")
        self.targets = [0, 1] * 10

    def __getitem__(self, index: int) -> tuple[Any, int]:
        kinds = [("x", "<i8"), ("y", "<i8"), ("t", "<i8"), ("p", "<i8")]
        return np.array([(index % 8, 0, 0, 1), (0, 0, 9, 1)], dtype=kinds), self.targets[index]


class Split(Recorded):
    def __init__(self, save_to: str, train: bool) -> None:
        super().__init__(save_to)
        self.targets = self.targets if train else self.targets[:4]


def test_data_sets_of_tonic_are_opened_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import tonic

    monkeypatch.setattr(tonic.datasets, "Recorded", Recorded, raising=False)
    monkeypatch.setattr(tonic.datasets, "Split", Split, raising=False)
    assert len(open_events("tonic/Split", "train", classes=2).labels) == 20
    assert len(open_events("tonic/Split", "validation", classes=2).labels) == 4
    train, test = open_events("tonic/Recorded", "train", classes=2), open_events("tonic/Recorded", "test", classes=2)
    assert (train.labels, test.labels) == ([0, 1] * 9, [0, 1])
    frames = test.frames(1, 1, (6, 8))  # the last of all recordings
    assert frames[0, 1, 0].nonzero().flatten().tolist() == [19 % 8]
    with pytest.raises(DataError, match="'tonic/Recorded' cannot be opened: no such place") as caught:
        open_events("tonic/Recorded", "train", classes=2, root="nowhere")
    assert "--data-dir" in caught.value.hint


def test_a_dvs_model_learns_from_recordings_and_is_scored(recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    small = ["dim=32", "depth=1", "num_heads=2", "timesteps=4", "pools=0011"]
    options = ["--img-size", "32", "--num-classes", "2", "--epochs", "6", "--batch-size", "8", "--lr", "5e-3"]
    command = ["train", "spikformer_2_256_cifar10dvs", *(word for value in small for word in ("-a", value)), *options]
    result = CliRunner().invoke(cli, [*command, "--data", str(recordings), "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    document: Any = json.loads(result.stdout)
    assert document["images"] == 16
    assert len(document["snn"]) == 4
    assert document["snn"][-1]["top1"] >= 90
    again = CliRunner().invoke(cli, ["evaluate", str(out), "--data", str(recordings), "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["snn"] == document["snn"]
    fewer = CliRunner().invoke(cli, ["evaluate", str(out), "--data", str(recordings), "--json", "--timesteps", "1,3"])
    assert json.loads(fewer.stdout)["snn"] == [document["snn"][0], document["snn"][2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-classes", "1"], "has 2 class folders, the model tells 1 classes apart"),
        (["-a", "timesteps=0", "--num-classes", "2"], "leaves open into how many timesteps a recording is cut"),
    ],
)
def test_models_that_do_not_fit_the_recordings_are_refused(
    arguments: list[str], message: str, recordings: Path, tmp_path: Path
) -> None:
    command = ["train", "spikformer_2_256_cifar10dvs", "-a", "dim=32", "--img-size", "32", *arguments]
    result = CliRunner().invoke(cli, [*command, "--data", str(recordings), "-o", str(tmp_path / "model")])
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert not (tmp_path / "model").exists()
