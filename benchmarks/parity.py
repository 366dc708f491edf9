"""Whether a GPU computes and converts what the CPU does: recipes of the embedded model, and the tests of the kernels."""

from __future__ import annotations

import copy
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from parts import Budget, Row, Setting, attempt, no_time
from torch import Tensor, nn

from vit2snn.convert import RECIPES, load_model, to_spiking
from vit2snn.data import array_source, prepared
from vit2snn.spiking import graphed
from vit2snn.zoo.demo import demo_images

ROOT = Path(__file__).parent.parent
CALIBRATED_ON, SCORED = 32, 64
GRACE = 30.0  # seconds that the tests have when the recipes are through
QUICK = ("faithful", "qkformer", "spike-driven")


def parity(setting: Setting, budget: Budget) -> Iterator[Row]:
    """A row for each recipe, and one for the tests, which run meanwhile."""
    with TemporaryFile("w+") as told:  # a pipe would be full some time
        tests = start_tests(setting, told)
        yield from recipes(setting, budget)
        yield attempt("tests of the kernels", partial(outcome, tests, told, budget))


def recipes(setting: Setting, budget: Budget) -> Iterator[Row]:
    """A row for each."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ann, took, moved = load_model("demo"), [0.0], dict[str, Any]()
    calibration, scored = (images_of(ann, split, count) for split, count in (("train", CALIBRATED_ON), ("val", SCORED)))
    for name in QUICK if setting.quick else RECIPES:
        if budget.left < statistics.median(took):
            yield no_time(name, statistics.median(took), budget)
            continue
        started = time.monotonic()
        yield attempt(name, partial(compare, ann, name, calibration, scored, setting.device, moved))
        took.append(time.monotonic() - started)
    # Last, as a recording that fails may take what comes after it with it.
    for name, snn in moved.items():
        yield attempt(f"{name}, graphs", partial(replayed, snn, scored.to(setting.device)))


def images_of(ann: nn.Module, split: str, count: int) -> Tensor:
    """Embedded images ``[count, 1, H, W]``."""
    return torch.stack([sample.image for sample in prepared(ann, array_source(*demo_images(split), "L"), count=count)])


def compare(ann: nn.Module, name: str, calibration: Tensor, scored: Tensor, device: str, kept: dict[str, Any]) -> Row:
    """One network on both, which is ``kept``, and two networks, one converted on each."""
    recipe = RECIPES[name]
    recipe = recipe.changed(refit="ridge") if recipe.structure.replaces else recipe
    started = time.monotonic()
    ours = to_spiking(ann, recipe, calibration)
    converted = time.monotonic()
    theirs = to_spiking(copy.deepcopy(ann).to(device), recipe, calibration.to(device))
    took = converted - started, time.monotonic() - converted
    kept[name], shown = copy.deepcopy(ours).to(device), scored.to(device)
    with torch.inference_mode():
        expected, wanted = ours.readout(scored), ann(scored)
        found, other = kept[name].readout(shown).cpu(), theirs.readout(shown).cpu()
    return {
        "images": len(scored), "logits": farthest(found, expected), "classes differ": differ(found, expected),
        "thresholds": thresholds(theirs, ours), "agreement": 100 - 100 * differ(expected, wanted) / len(scored),
        "agreement, converted there": 100 - 100 * differ(other, wanted) / len(scored),
        "seconds to convert": took[0], "seconds to convert there": took[1],
    }  # fmt: skip


@torch.inference_mode()
def replayed(snn: Any, shown: Tensor) -> Row:
    """Whether recorded runs give the same logits, also of other images than those of the recording."""
    fast, other = graphed(snn), shown.flip(0)
    return {"images": len(shown), "equal": all(torch.equal(fast.readout(x), snn.readout(x)) for x in (shown, other))}


def farthest(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def differ(found: Tensor, expected: Tensor) -> int:
    """Images of other classes, by the last timestep of ``[T, B, classes]`` or by ``[B, classes]``."""
    last = [logits.reshape(-1, *logits.shape[-2:])[-1].argmax(-1) for logits in (found, expected)]
    return int((last[0] != last[1]).sum())


def thresholds(found: nn.Module, expected: nn.Module) -> float:
    """The largest relative difference of a threshold; infinite ones, of neurons that are silent, must be the same."""
    largest = 0.0
    tables = found.state_dict()
    for name, value in expected.state_dict().items():
        if name.endswith("threshold") and value.numel():
            error = ((tables[name].cpu() - value).abs() / value.abs()).nan_to_num(0.0)  # inf - inf, and 0 / 0
            largest = max(largest, float(error.max()))
    return largest


def start_tests(setting: Setting, told: IO[str]) -> subprocess.Popen[str]:
    """Those of the kernels and of graphs, in a process of their own; on the CPU they are interpreted, so a few will do."""
    few = ["-k", "other_way or still_image"] if setting.quick else []
    command = [sys.executable, "-m", "pytest", "-n", "0", "tests/test_gpu.py", "tests/test_graphs.py", *few]
    own = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // 4, 1))}  # the recipes need the other cores
    interpreted = {} if setting.device == "cuda" else {"TRITON_INTERPRET": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | own | interpreted, stdout=told, stderr=subprocess.STDOUT, text=True
    )


def outcome(tests: subprocess.Popen[str], told: IO[str], budget: Budget) -> Row:
    """How many passed, and which did not."""
    try:
        tests.wait(timeout=max(budget.left, GRACE))
    except subprocess.TimeoutExpired:
        tests.kill()
        return {"skipped": "the tests were not through in time"}
    told.seek(0)
    lines = told.read().splitlines()
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1])}
    broken = [line for line in lines if line.startswith(("FAILED", "ERROR"))][:10]
    return (counts or {"failed": lines[-1]}) | ({"broken": broken} if broken else {})
