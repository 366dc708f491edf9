"""Commands that are killed while they write: what was there is whole, and the next run leaves what it would have left.

What can be resumed, is, every second time.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file
from test_official import CASES, checkpoint, model_of

from vit2snn.convert import RECIPES

pytestmark = pytest.mark.slow

WRITING = {
    "demo": ["demo", "-o", "demo", "--overwrite"],
    "convert": ["convert", "demo", "-o", "out", "--samples", "4", "--timesteps", "1", "--overwrite"],
    "evaluate": ["evaluate", "kept", "--samples", "8", "--timesteps", "1"],
    "report": ["report", "kept", "-o", "page.html"],
    "fit": ["convert", "demo", "--recipe=some.json", "--passes=8", "-o", "fitted", "--samples", "16", "--overwrite"],
    "plan": ["plan", "demo", "--recipe=some.json", "-o", "plans", "--samples", "32", "--plans", "2", "--overwrite"],
    "train": ["train", "tiny", "-o", "trained", "--max-steps=2", "--checkpoint-every=1", "--samples", "8", "--overwrite"],
    "finetune": ["finetune", "kept", "-o", "tuned", "--max-steps=2", "--checkpoint-every=1", "--overwrite"],
    "import": [
        "zoo",
        "import",
        "autost.safetensors",
        "--layout=autost",
        "--config=autost.json",
        "-o",
        "imported",
        "--overwrite",
    ],
    "search": ["zoo", "search", "--space=autost-tiny", "--population=4", "--generations=2", "-o", "s.json", "--overwrite"],
    "create": ["zoo", "create", "found.json", "-o", "created", "--overwrite"],
}
UNFINISHED = {
    "fit": "fitted.training", "plan": "plans.training", "train": "trained.training", "finetune": "tuned.training",
    "search": "s.json.progress",
}  # fmt: skip
LATER = {f"{out}/metrics.csv" for out in ("trained", "tuned", "fitted")} | {
    "demo/evaluation.json", "demo/evaluation.csv", "demo/curve.svg",
}  # fmt: skip
"""What comes into a folder that is whole already."""
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
    few = RECIPES["qkformer"].changed(
        attention={"first third": "qk-relu+conv", "last two thirds": "softmax"}, mlp="mlp", timesteps=1
    )
    (folder / "some.json").write_text(json.dumps(few.to_json()))
    weights = checkpoint("autost", model_of("autost")[0])
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "autost.safetensors")
    (folder / "autost.json").write_text(json.dumps(CASES["autost"][2]))
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
        assert before.keys() <= left.keys() | LATER, said
        for name in left:
            if name.endswith(".json") and not name.startswith(".vit2snn-"):
                json.loads((place / name).read_text())  # it is whole
        goes_on = number % 2 == 0 and (place / UNFINISHED.get(command, "none")).exists()
        finished(place, [*arguments, "--resume"] if goes_on else arguments)
        assert contents(place).keys() == before.keys()
        assert {name for name, data in contents(place).items() if data != before[name]} == set()
        assert not list(place.rglob(".vit2snn-*"))
