"""Two processes, each with its share of the images, against one with all. As a script, this file is one of the processes."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from click.testing import CliRunner
from conftest import make_recipe, make_vit
from torch import Tensor

from vit2snn.calibration import OBSERVERS, NormalEquations
from vit2snn.calibration.code import Code
from vit2snn.cli import cli
from vit2snn.convert import (
    RECIPES,
    Coded,
    Recipe,
    SpikingModel,
    Structure,
    Teacher,
    candidates,
    fit_branches,
    fit_spikes,
    fitting,
    structure,
    to_spiking,
    trials,
)
from vit2snn.convert.trials import Candidate
from vit2snn.errors import DataError
from vit2snn.measure import evaluate
from vit2snn.spiking import Alphabet, Coding, shards

pytestmark = pytest.mark.slow  # the processes of nearly all tests
DRIVEN = RECIPES["spike-driven"].changed(timesteps=2)
GROUPS = 5
"""Of processes, one after another: the one of `together`, and those of four commands."""
AUTO = DRIVEN.changed(mlp="auto")
BRIEF = {"STEPS": 3, "BATCH": 4}
"""Of all fits in these tests."""
FITS = (fit_branches, fit_spikes, fitting, trials)
CASES = {
    "faithful": Recipe(timesteps=2),
    "static": make_recipe(timesteps=2, thresholds="static", observer="mse", prior="minimum", granularity="channel", bias=False),
}
FITTED = {
    "integers": Recipe(timesteps=2, weight_bits=6),
    "spike-driven": DRIVEN,
    "experts": DRIVEN.changed(attention="emsa", mlp="emsp", refit="ridge"),
}
"""The processes get the same network of these too, but it is another one than one process gets."""
OUTPUTS = {"features": 0, "numbers": 1}
"""What is not classes, and the size of the head."""


def sample() -> tuple[Tensor, Tensor]:
    """Images and labels that are the same in each process."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, 3, 16, 16, generator=generator), torch.arange(16) % 7


def own(x: Tensor) -> Tensor:
    return torch.stack(list(shards.share(x)))


def converted(name: str, images: Tensor, classes: int = 7) -> SpikingModel:
    torch.manual_seed(0)
    ann = make_vit(num_classes=classes).to(images)
    torch.manual_seed(7 * int(os.environ.get("RANK", "0")))  # each process has random numbers of its own
    return to_spiking(ann, (CASES | FITTED)[name], [images])


def statistics(x: Tensor) -> dict[str, Any]:
    """What is read of statistics that saw the rows of ``x`` in two batches."""
    equations = NormalEquations()
    code = Code(Alphabet(4), Coding.DIFFERENTIAL, 1, 1)
    observers = {name: make(99.0, code) for name, make in OBSERVERS.items()}
    for batch in x.chunk(2):
        equations.update(batch, batch.roll(1, 1).square())
        for observer in observers.values():
            observer.update(batch.T.abs())
    return {"solved": equations.solve(0.1), **{name: observer.value() for name, observer in observers.items()}}


def zoo_model() -> Any:
    import timm
    from test_zoo import SMALL

    torch.manual_seed(0)
    return timm.create_model("spikformer_4_384_cifar10", **SMALL["spikformer_4_384_cifar10"]).eval()


def scores(snn: SpikingModel, scored: Tensor, labels: Tensor) -> dict[str, Any]:
    """In float32 a value within rounding of a threshold may be coded differently in another batch."""
    return evaluate(snn.double(), zip(scored.double().split(8), labels.split(8), strict=True)).to_json()


def figures(images: Tensor, scored: Tensor, labels: Tensor, cases: Iterable[str]) -> dict[str, Any]:
    """All that is compared: of a share, or of all images."""
    torch.manual_seed(0)
    found: dict[str, Any] = {"statistics": statistics(images.flatten(1)[:, :3])}
    for name in cases:
        snn = converted(name, images.double() if name in CASES else images)
        found[name] = {"state": copy.deepcopy(snn.network.state_dict()), "digests": sorted(snn.calibrated_on)}
        found[name]["figures"] = scores(snn, scored, labels)
    for output, classes in OUTPUTS.items():
        found[output] = scores(converted("faithful", images.double(), classes), scored, labels)
    model = zoo_model()
    found["zoo"] = evaluate(model, [(scored, labels % model.num_classes)]).to_json()
    return found


def test_shares_and_figures_of_one_process_are_the_whole() -> None:
    x = torch.arange(6.0)
    assert list(shards.share("abc")) == ["a", "b", "c"] and shards.processes() == 1
    for read in (shards.total, shards.largest, shards.smallest, shards.first):
        assert read(x) is x
    assert shards.collected(["a", "b"]) == ("a", "b")


def together(out: Path) -> None:
    """The part of one of two processes."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    x = torch.arange(6.0).reshape(3, 2).T + 10 * rank  # not contiguous
    assert torch.equal(shards.total(x), 2 * x + 10 - 20 * rank) and torch.equal(shards.first(x), x - 10 * rank)
    assert torch.equal(shards.largest(x), x + 10 - 10 * rank) and torch.equal(shards.smallest(x), x - 10 * rank)
    assert x[0, 0] == 10 * rank
    assert shards.collected(["a"] * (rank + 1)) == ("a", "a", "a")
    images, labels = sample()
    with pytest.raises(DataError, match="from 1 to 2 batches of calibration images"):
        to_spiking(make_vit(), Recipe(), list(images.split(16 // (rank + 1))))
    with pytest.raises(DataError, match="no images to score"):
        evaluate(zoo_model(), [(images, labels)] if rank else [])
    for module in FITS:
        module.__dict__.update(BRIEF)
    fit = Recipe(structure=Structure("experts+ssa", "relu", norm="gated", refit="network", passes=2), spikes=Coded(levels=0))
    fitted = to_spiking(make_vit(), fit, [own(images)]).network.state_dict()
    assert all(torch.equal(value, shards.first(value)) for value in fitted.values())
    found = figures(own(images), own(images[:15]), own(labels[:15]), CASES | FITTED)
    by_itself = evaluate(zoo_model(), [(images[rank:], labels[rank:])], shared=False)
    assert by_itself.images == 16 - rank
    found["candidates"] = measured([own(images)])
    found["plan"] = to_spiking(make_vit(depth=1), AUTO, [own(images)]).recipe.to_json()
    AcceleratorState._reset_state(reset_partial_state=True)  # which keeps the group that is about to end
    dist.destroy_process_group()
    found["commands"] = commands(out)
    torch.save(found, out / f"{rank}.pt")


def measured(batches: list[Tensor]) -> list[Candidate]:
    torch.manual_seed(0)
    return list(candidates(make_vit(depth=3), AUTO, batches, count=15, seed=2))


def commands(out: Path) -> dict[str, Any]:
    """What converting and scoring the demo prints."""
    next_port()
    conversion = run("convert", "demo", "-o", out / "snn", "--samples", 17, "--timesteps", 2)
    next_port()
    evaluation = run("evaluate", out / "snn", "--samples", 21)
    next_port()
    audited = run("audit", out / "snn", "--samples", 9, "--timesteps", 1, "--replay")
    next_port()
    planned = run("plan", "demo", "--recipe", "spike-driven", "--samples", 17, "--timesteps", 1, "-o", out / "plans")
    return {"convert": conversion, "evaluate": evaluation, "audit": audited, "plan": planned}


def next_port() -> None:
    """A port of its own for the next group: the store of the one before may still be closing."""
    os.environ["MASTER_PORT"], *later = os.environ["LATER_PORTS"].split()
    os.environ["LATER_PORTS"] = " ".join(later)


def run(*arguments: object) -> tuple[str, str]:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout, result.stderr


def launch(*command: object) -> list[tuple[str, str]]:
    """Run a command in two processes as a launcher does; what each printed, to stdout and stderr."""
    with ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in range(GROUPS)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        port, *later = (str(each.getsockname()[1]) for each in free)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    world |= {"MASTER_PORT": port, "LATER_PORTS": " ".join(later)}
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=180) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(err for _, err in printed)
    return printed


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("shards")
    launch(__file__, out)
    return [torch.load(out / f"{rank}.pt", weights_only=False) | {"out": out} for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process finds with all images."""
    images, labels = sample()
    return figures(images, images[:15], labels[:15], CASES)


def same(found: Any, wanted: Any, **tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, **tolerance)


def test_statistics_are_read_over_all_processes(shared: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for found in shared:
        same(found["statistics"], alone["statistics"], atol=1e-6, rtol=1e-6)
    images, _ = sample()
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="not close"):
        same(statistics(images[::2].flatten(1)[:, :3]), alone["statistics"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_processes_convert_to_the_network_of_one(name: str, shared: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    same(shared[0][name]["state"], shared[1][name]["state"], atol=0, rtol=0)
    for key, wanted in alone[name]["state"].items():
        same(shared[0][name]["state"][key], wanted, atol=1e-5, rtol=1e-4, msg=key)
    assert shared[0][name]["digests"] == shared[1][name]["digests"] == alone[name]["digests"]
    assert len(alone[name]["digests"]) == 16


@pytest.mark.parametrize("name", CASES)
def test_processes_score_as_one(name: str, shared: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert shared[0][name]["figures"] == shared[1][name]["figures"]
    found, wanted = shared[0][name]["figures"], alone[name]["figures"]
    assert found["images"] == wanted["images"] == 15
    for key in ("ann", "snn"):
        same(found[key], wanted[key], atol=1e-3, rtol=1e-3)
    errors = [{row["name"]: row for row in document["modules"]} for document in (found, wanted)]
    same(*({name: row["relative_error"] for name, row in rows.items()} for rows in errors), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("output", OUTPUTS)
def test_processes_score_features_and_numbers_as_one(output: str, shared: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert shared[0][output] == shared[1][output]
    found, wanted = shared[0][output], alone[output]
    assert found["output"] == output and found["images"] == wanted["images"] == 15
    for key in ("ann", "snn"):
        same(found[key], wanted[key], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", FITTED)
def test_processes_fit_membranes_to_one_network_and_score_it_as_one(name: str, shared: list[dict[str, Any]]) -> None:
    same(shared[0][name]["state"], shared[1][name]["state"], atol=0, rtol=0)
    assert shared[0][name]["figures"] == shared[1][name]["figures"]
    assert len(shared[0][name]["digests"]) == 16
    images, labels = sample()
    torch.manual_seed(0)
    ann = make_vit()
    snn = structure(ann, FITTED[name], (3, 16, 16))
    snn.network.load_state_dict(shared[0][name]["state"])
    snn.teacher = Teacher(ann)
    wanted = scores(snn, images[:15], labels[:15])
    for key in ("ann", "snn"):
        same(shared[0][name]["figures"][key], wanted[key], atol=1e-6, rtol=1e-6)


def test_processes_score_zoo_models_as_one(shared: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert shared[0]["zoo"] == shared[1]["zoo"]
    found, wanted = shared[0]["zoo"], alone["zoo"]
    assert (found["images"], found["digest"]) == (wanted["images"], wanted["digest"])
    same(found["snn"], wanted["snn"], atol=1e-6, rtol=1e-6)
    for one, other in zip(found["costs"]["operations"], wanted["costs"]["operations"], strict=True):
        assert (one["module"], one["kind"], one["macs"]) == (other["module"], other["kind"], other["macs"])
        assert [operand["kind"] for operand in one["operands"]] == [operand["kind"] for operand in other["operands"]]
        same(one["accumulates"], other["accumulates"], atol=1e-6, rtol=1e-6)


def test_processes_choose_plans_alike(shared: list[dict[str, Any]]) -> None:
    assert shared[0]["plan"] == shared[1]["plan"]
    assert shared[0]["plan"]["structure"]["mlp"] != "auto"


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fits as brief as those of the processes, on as many threads, so that sums are taken in the same order."""
    for module in FITS:
        for name, value in BRIEF.items():
            monkeypatch.setattr(module, name, value, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("brief")
def test_processes_measure_the_very_candidates_that_one_measures(shared: list[dict[str, Any]]) -> None:
    assert shared[0]["candidates"] == shared[1]["candidates"] == measured([sample()[0]])


@pytest.mark.usefixtures("brief")
def test_processes_plan_and_audit_as_one(shared: list[dict[str, Any]], tmp_path: Path) -> None:
    found, out = shared[0]["commands"], shared[0]["out"]
    wanted = run("plan", "demo", "--recipe", "spike-driven", "--samples", 17, "--timesteps", 1, "-o", tmp_path / "plans")
    documents = [json.loads(printed[0]) for printed in (found["plan"], wanted)]
    assert documents[0] == documents[1]
    assert {path.name for path in out.glob("plans*")} == {"plans"}
    alone = run("audit", out / "snn", "--samples", 9, "--timesteps", 1, "--replay")
    one, other = (json.loads(printed[0]) for printed in (found["audit"], alone))
    assert (one["images"], one["replay"]["left"]) == (9, []) and one["addition_only"] == other["addition_only"]
    for row, expected in zip(one["operations"], other["operations"], strict=True):
        assert (row["module"], row["function"], row["operands"]) == (
            expected["module"], expected["function"], expected["operands"],
        )  # fmt: skip
        assert row["accumulates"] == pytest.approx(expected["accumulates"], rel=0.01)
        assert row["multiplies"] == pytest.approx(expected["multiplies"], rel=0.01)


def test_the_commands_share_their_images(shared: list[dict[str, Any]], tmp_path: Path) -> None:
    """The main process prints and writes what one process does; the other one is silent."""
    found, silent = (found["commands"] for found in shared)
    assert silent == dict.fromkeys(("convert", "evaluate", "audit", "plan"), ("", ""))
    wanted, out = {}, shared[0]["out"] / "snn"
    wanted["convert"] = run("convert", "demo", "-o", tmp_path / "snn", "--samples", 16, "--timesteps", 2)
    wanted["evaluate"] = run("evaluate", tmp_path / "snn", "--samples", 21)
    assert "16 images are used to calibrate (8 in each of 2 processes), not 17" in found["convert"][1]
    converted, expected = (json.loads(printed["convert"][0]) for printed in (found, wanted))
    assert converted["images"] == expected["images"] == 16
    digests = [json.loads((folder / "calibration.json").read_text())["digests"] for folder in (out, tmp_path / "snn")]
    assert sorted(digests[0]) == sorted(digests[1])
    documents = [json.loads(printed["evaluate"][0]) for printed in (found, wanted)]
    assert documents[0]["images"] == 21 and documents[0]["ann"] == documents[1]["ann"]
    for key in ("relative_error", "spikes_per_neuron"):
        same(documents[0]["snn"][-1][key], documents[1]["snn"][-1][key], atol=0.02, rtol=0.02)
    written = json.loads((out / "evaluation.json").read_text())
    assert written.pop("command") and written == documents[0] | {"read": written["read"]}
    assert written["read"]["data"] == "demo" and written["read"]["images"] >= 1000 and not written["read"]["skipped"]


if __name__ == "__main__":
    together(Path(sys.argv[1]))
