"""Commands that are killed while they write: what was there is whole, and the next run leaves what it would have left."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WRITING = {
    "convert": ["convert", "demo", "-o", "out", "--samples", "4", "--timesteps", "1", "--overwrite"],
    "evaluate": ["evaluate", "kept", "--samples", "8", "--timesteps", "1"],
    "report": ["report", "kept", "-o", "page.html"],
    "plan": ["plan", "demo", "-o", "plans", "--samples", "32", "--timesteps=1", "--plans", "2", "--overwrite"],
    "train": ["train", "tiny", "-o", "trained", "--max-steps", "2", "--samples", "8", "--overwrite"],
    "finetune": ["finetune", "kept", "-o", "tuned", "--max-steps", "2", "--overwrite"],
    "search": ["zoo", "search", "--space=autost-tiny", "--population=4", "--generations=2", "-o", "s.json", "--overwrite"],
    "create": ["zoo", "create", "found.json", "-o", "created", "--overwrite"],
}
SIGNALS = {signal.SIGTERM: (143, -signal.SIGTERM), signal.SIGINT: (130, -signal.SIGINT), signal.SIGKILL: (-signal.SIGKILL,)}


def started(folder: Path, arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vit2snn", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(folder: Path, arguments: list[str]) -> float:
    """Seconds that a command takes."""
    begun = time.monotonic()
    process = started(folder, arguments)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return time.monotonic() - begun


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that is there; of what tells of the run, such as seconds, only that it is there."""
    told = ("run.json", "metrics.csv", "evaluation.json", "curve.svg", "s.svg", "front.svg", "page.html")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): None if path.name in told else path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    search = [word if word != "s.json" else "found.json" for word in WRITING["search"]]
    small = ["-a", "dim=32", "-a", "num_heads=2", "-a", "depth=1", "-a", "timesteps=1"]
    for arguments in (
        ["convert", "demo", "-o", "kept", "--samples", "4", "--timesteps", "1"],
        WRITING["evaluate"],
        search,
        ["train", "spikformer_4_384_cifar10", *small, "--img-size", "16", "--max-steps", "1", "--samples", "8", "-o", "tiny"],
    ):
        finished(folder, arguments)
    return folder


@pytest.mark.parametrize("command", WRITING)
def test_a_killed_command_leaves_what_was_there_and_the_next_one_clears_up(
    command: str, place: Path, pytestconfig: pytest.Config
) -> None:
    arguments, chance = WRITING[command], random.Random(command)
    seconds = finished(place, arguments)
    before = contents(place)
    for number in range(pytestconfig.getoption("--fuzz-examples") or 3):
        sent = list(SIGNALS)[number % 3]
        process = started(place, arguments)
        time.sleep(chance.uniform(0.3, 1) * seconds)
        process.send_signal(sent)
        _, said = process.communicate()
        assert process.returncode in (0, *SIGNALS[sent]), said
        left = contents(place)
        assert before.keys() <= left.keys() | {"trained/metrics.csv", "tuned/metrics.csv"}, said  # these are moved there last
        for path in place.rglob("*.json"):
            json.loads(path.read_text())  # it is whole
        finished(place, arguments)
        assert contents(place).keys() == before.keys()
        assert {name for name, data in contents(place).items() if data != before[name]} == set()
        assert not list(place.rglob(".vit2snn-*"))
