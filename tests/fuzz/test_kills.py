"""Commands that are killed while they write: what was there is whole, and the next run leaves what it would have left.

What can be resumed, is, every second time. Commands run in processes that are forked from one which has imported what they
need: so most of their time is spent on what they do, and a signal finds them at it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal

import pytest
from safetensors.torch import save_file
from test_official import CASES, checkpoint, model_of

from vit2snn.cli import main
from vit2snn.convert import RECIPES, fit_branches, fitting, trials
from vit2snn.zoo import demo

pytestmark = pytest.mark.slow
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["vit2snn.cli", "vit2snn.convert", "vit2snn.finetune", "vit2snn.search", "vit2snn.zoo"])
SCORED, STEPS = 100, 40
"""Embedded images that the demo is scored on, and updates of each branch in a fit: fewer than there are."""

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


def run(folder: Path, arguments: list[str], begun: Event) -> None:
    """A command, in a process of its own, on few embedded images and with short fits."""
    every = demo.demo_images

    def some(split: Literal["train", "val"]) -> tuple[Any, Any]:
        images, labels = every(split)
        return (images, labels) if split == "train" else (images[:SCORED], labels[:SCORED])

    demo.demo_images = some
    for module in (fit_branches, fitting, trials):
        module.__dict__["STEPS"] = STEPS
    os.chdir(folder)
    with open(said(folder), "wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["vit2snn", *arguments]
    begun.set()
    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of which multiprocessing would make another exit code


def said(folder: Path) -> Path:
    """The file, beside a folder, with all that the last command there has said."""
    return folder.with_name("said.txt")


def started(folder: Path, arguments: list[str]) -> BaseProcess:
    begun = FORKED.Event()
    process = FORKED.Process(target=run, args=(folder, arguments, begun))
    process.start()
    assert begun.wait(60)
    return process


def finished(folder: Path, arguments: list[str]) -> float:
    """Seconds that a command takes."""
    process = started(folder, arguments)
    begun = time.monotonic()
    process.join()
    assert process.exitcode == 0, said(folder).read_text()
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
    for number in range(pytestconfig.getoption("--fuzz-examples") or 2):
        sent = list(SIGNALS)[(list(WRITING).index(command) + number) % len(SIGNALS)]
        process = started(place, arguments)
        time.sleep(chance.uniform(0.1, 1) * seconds)
        with suppress(ProcessLookupError):  # it has ended
            os.kill(process.pid or 0, sent)
        process.join()
        assert process.exitcode in (0, *SIGNALS[sent]), said(place).read_text()
        left = contents(place)
        assert before.keys() <= left.keys() | LATER, said(place).read_text()
        for name in left:
            if name.endswith(".json") and not name.startswith(".vit2snn-"):
                json.loads((place / name).read_text())  # it is whole
        goes_on = number % 2 == 0 and (place / UNFINISHED.get(command, "none")).exists()
        finished(place, [*arguments, "--resume"] if goes_on else arguments)
        assert contents(place).keys() == before.keys()
        assert {name for name, data in contents(place).items() if data != before[name]} == set()
        assert not list(place.rglob(".vit2snn-*"))
