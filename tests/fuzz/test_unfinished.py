"""Damaged files of unfinished runs: whatever is wrong with them, a run is resumed or ends in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_recipe, make_vit
from hypothesis import HealthCheck, event, given, settings, strategies as st
from test_artifacts import NASTY, _bytes, _changed
from torch import Tensor

from vit2snn.convert import Fitting, candidates, to_spiking
from vit2snn.errors import Vit2SnnError
from vit2snn.finetune import Settings, Step, Workspace, check_folder, close_folder, open_folder, train
from vit2snn.search import FIRING_RATE, SPACES, TASKS, Request, Search, Settings as Way, figures, resume, write_progress

EXAMPLES = 30


def images() -> Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def ann(depth: int) -> Any:
    torch.manual_seed(0)
    return make_vit(depth=depth)


def stopped(after: int) -> Callable[[Any], None]:
    """A report that stops a run after so many calls."""
    numbers = iter(range(after))

    def report(done: Any) -> None:
        if next(numbers, None) is None:
            raise KeyboardInterrupt

    return report


def training(folder: Path, again: bool, report: Callable[[Step], None]) -> None:
    batches = [(part, torch.arange(len(part))) for part in images().split(6)]
    workspace = Workspace(folder, 1, again, {"data": "demo"})
    train(ann(1), batches, Settings(max_steps=4, ema=0.9), workspace=workspace, report=report)


def fit(folder: Path, again: bool, report: Callable[[Any], None]) -> None:
    recipe = make_recipe(attention="qk-relu+conv", mlp="relu", norm="static", refit="network", passes=2, timesteps=1)
    to_spiking(ann(1), recipe, images(), fitting=Fitting(folder=folder, resume=again, report=report))


def plans(folder: Path, again: bool, report: Callable[[Any], None]) -> None:
    recipe = make_recipe(mlp="auto", norm="static", timesteps=1)
    for candidate in candidates(ann(2), recipe, [images()], folder=folder, resume=again):
        report(candidate)


def search(folder: Path, again: bool, report: Callable[[Any], None]) -> None:
    space, task, way = SPACES["autost-tiny"], TASKS["cifar10"], Way(3, 4, 2, 2, 2)
    request = Request("autost-tiny", space, "cifar10", task, (), FIRING_RATE, way)
    running = Search(space, "autost-tiny", (), way, lambda one: figures(one, space, task, FIRING_RATE))
    out = folder / "found.json"
    if again:
        resume(running, request, out)
    while not running.finished:
        running.advance()
        write_progress(running, request, out)
        report(running)


RUNS = {"training": (training, 3), "fit": (fit, 5), "plans": (plans, 3), "search": (search, 1)}
"""What is resumed, and when it was interrupted."""


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("trials", "fit_branches", "fitting"):
            patch.setattr(f"vit2snn.convert.{module}.STEPS", 2)
        yield


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of interrupted runs, by name."""
    place = tmp_path_factory.mktemp("unfinished")
    for name, (run, after) in RUNS.items():
        with pytest.raises(KeyboardInterrupt):
            run(open_folder(place / name), False, stopped(after))
    return place


def _states(draw: st.DrawFn, path: Path) -> None:
    """What a checkpoint holds, with a value that is another one, missing, or of another shape."""
    kept: Any = torch.load(path, weights_only=True)
    part: Any = {"kept": kept}
    key: Any = "kept"
    while isinstance(part[key], (dict, list)) and part[key] and draw(st.sampled_from((True, True, True, True, False))):
        part = part[key]
        key = draw(st.sampled_from(sorted(part, key=str))) if isinstance(part, dict) else draw(st.integers(0, len(part) - 1))
    value = part[key]
    if isinstance(part, dict) and key != "kept" and draw(st.sampled_from((True, False, False))):
        del part[key]
    elif isinstance(value, Tensor):
        other = draw(st.sampled_from((value.flatten()[:1], value[None], torch.full_like(value, 9), value.double(), None)))
        part[key] = other
    elif key == "identity":
        part[key] = json.dumps(_changed(draw, json.loads(value)))
    else:
        part[key] = draw(st.sampled_from(NASTY))
    torch.save(kept, path)


def _damaged(draw: st.DrawFn, folder: Path) -> str:
    path = draw(st.sampled_from(sorted(file for file in folder.rglob("*") if file.is_file())))
    how = draw(st.sampled_from(("content", "content", "bytes", "bytes", "gone", "folder")))
    if how in ("gone", "folder"):
        path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "content" and path.name == "checkpoint":
        _states(draw, path)
    elif how == "content" and path.suffix in (".json", ".progress"):
        path.write_text(json.dumps(_changed(draw, json.loads(path.read_text()))))
    elif how != "gone":
        path.write_bytes(_bytes(draw, path.read_bytes()))
    return f"{path.name} {how}"


def test_damaged_unfinished_runs_go_on_or_are_told(unfinished: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    @settings(
        max_examples=pytestconfig.getoption("--fuzz-examples") or EXAMPLES, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(RUNS)))
        out, folder = tmp_path / name, tmp_path / f"{name}.training"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(unfinished / folder.name, folder)
        what = _damaged(data.draw, folder)
        try:
            check_folder(out, resume=True)
            RUNS[name][0](open_folder(out, resume=True), True, lambda done: None)
        except Vit2SnnError as error:
            event(f"{name}, {what}: {str(error).replace(str(tmp_path), '')[:100]}")
            assert len(str(error)) < 2000 and "\n" not in str(error)
        else:
            event(f"{name}, {what}: goes on")

    damaged()


def test_an_unfinished_run_that_is_whole_goes_on(unfinished: Path, tmp_path: Path) -> None:
    for name, (run, _) in RUNS.items():
        shutil.copytree(unfinished / f"{name}.training", tmp_path / f"{name}.training")
        numbers: list[Any] = []
        run(open_folder(tmp_path / name, resume=True), True, numbers.append)
        assert numbers, name
        (tmp_path / name).mkdir()
        close_folder(tmp_path / name)
