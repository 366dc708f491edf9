"""The search for architectures: counts, windows, evolution, front and commands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, strategies as st
from torch import Tensor

from vit2snn.cli import cli
from vit2snn.errors import ModelError, SearchError
from vit2snn.search import (
    SPACES,
    TASKS,
    Architecture,
    Figures,
    Search,
    Settings,
    Space,
    Task,
    Window,
    arguments,
    count,
    create,
    figures,
    front,
)
from vit2snn.search.front import by_front, is_on_front, objectives
from vit2snn.spiking.branches import kinds
from vit2snn.zoo import statistics

CIFAR = TASKS["cifar100"]
SMALL = Space("spikformer", (32, 64), ((1, 3),), (1, 2.5), (2, 4), kinds("attention"), (1, 2))


def statistics_of(architecture: Architecture, space: Space, task: Any) -> Any:
    with torch.device("meta"):
        model = create(arguments(architecture, space, task), task)
    return statistics(model, (task.size, task.size))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cifar10", "imagenet", "cifar10dvs"])
@pytest.mark.parametrize("name", SPACES)
def test_counts_in_closed_form_are_those_of_the_models(name: str, task: str) -> None:
    space, images, random = SPACES[name], TASKS[task], Random(1)
    for _ in range(3):
        drawn = space.draw(random)
        found = statistics_of(drawn, space, images)
        counted, _ = count(drawn, space, images)
        assert figures(drawn, space, images).parameters == found.parameters
        assert (counted.layer_macs, counted.product_macs) == (found.layer_macs, found.product_macs)
        assert counted.neurons == found.neurons
        assert figures(drawn, space, images).macs == drawn.timesteps * (found.layer_macs + found.product_macs)


@pytest.mark.parametrize("kind", ["ssa", "emsa"])
def test_the_score_counts_products_as_papers_write_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v @ (k.transpose(-1, -2) @ q)

    for module in ("ssa", "emsa"):
        monkeypatch.setattr(f"vit2snn.spiking.branches.{module}.attend", written)
    space = dataclasses.replace(SPACES["spikformer"], attention=(kind,))
    drawn = space.draw(Random(3))
    found = statistics_of(drawn, space, CIFAR)
    score = figures(drawn, space, CIFAR).score
    assert score == pytest.approx(drawn.timesteps * (found.layer_macs + found.product_macs) / 1e9, rel=1e-12)


@pytest.mark.parametrize(
    ("space", "dim", "depth", "ratio", "millions"),
    [
        ("autost-tiny", 192, 1, 3, 0.94),
        ("autost-tiny", 192, 10, 5, 5.79),
        ("autost-tiny", 384, 10, 5, 23.0),
        ("autost-small", 512, 12, 5, 48.2),
        ("autost-base", 768, 15, 6, 150.8),
    ],
)
def test_corners_of_the_published_spaces_have_the_published_parameters(
    space: str, dim: int, depth: int, ratio: int, millions: float
) -> None:
    corner = next(
        c for c in SPACES[space].corners() if (c.dim, c.depth, c.mlp_ratios[0], c.num_heads[0]) == (dim, depth, ratio, 8)
    )
    assert round(figures(corner, SPACES[space], CIFAR).parameters / 1e6, len(str(millions).split(".")[1])) == millions


@pytest.mark.parametrize("name", ["autost-tiny", "sdt", "qkformer"])
def test_no_architecture_is_beyond_the_corners(name: str) -> None:
    space, random = SPACES[name], Random(0)
    corners = [figures(corner, space, CIFAR) for corner in space.corners()]
    for _ in range(200):
        drawn = figures(space.draw(random), space, CIFAR)
        for figure in ("parameters", "macs", "energy", "score"):
            values = [getattr(corner, figure) for corner in corners]
            assert min(values) <= getattr(drawn, figure) <= max(values)


def test_the_energy_is_the_convention_of_the_papers() -> None:
    drawn = Architecture(64, (1,), ("ssa",), (4,), (2,), 4)
    counted, first = count(drawn, SMALL, CIFAR)
    assert first == 3 * 8 * 9 * 32**2
    expected = 4 * (4.6 * first + 0.9 * 0.1 * (counted.layer_macs + counted.product_macs - first)) * 1e-12
    assert figures(drawn, SMALL, CIFAR, rate=0.1).energy == pytest.approx(expected, rel=1e-12)


def genes(architecture: Architecture) -> list[tuple[Any, ...]]:
    return list(zip(architecture.attention, architecture.num_heads, architecture.mlp_ratios, strict=True))


def is_of(architecture: Architecture, space: Space) -> bool:
    blocks = all(a in space.attention and h in space.num_heads and r in space.mlp_ratios for a, h, r in genes(architecture))
    spans = all(low <= d <= high for d, (low, high) in zip(architecture.depths, space.depths, strict=True))
    whole = len(genes(architecture)) == sum(architecture.depths)
    return blocks and spans and whole and architecture.dim in space.dims and architecture.timesteps in space.timesteps


@given(seed=st.integers(0, 10**6))
def test_genes_come_from_the_space_and_from_parents(seed: int) -> None:
    random = Random(seed)
    one, other = SMALL.draw(random), SMALL.draw(random)
    assert is_of(one, SMALL)
    assert SMALL.mutated(random, one, 0, 0) == one
    assert is_of(SMALL.mutated(random, one, 1, 1), SMALL)
    resized = SMALL.mutated(random, one, 1, 0)
    assert is_of(resized, SMALL) and all(a == b for a, b in zip(genes(resized), genes(one), strict=False))
    for larger in (False, True):
        nudged = SMALL.nudged(random, one, larger)
        if nudged is not None:
            assert is_of(nudged, SMALL) and sum(nudged.mlp_ratios) - sum(one.mlp_ratios) == (1.5 if larger else -1.5)
            assert dataclasses.replace(nudged, mlp_ratios=one.mlp_ratios) == one
        else:
            assert set(one.mlp_ratios) == {2.5 if larger else 1}
    if one.depths == other.depths:
        child = SMALL.crossed(random, one, other)
        assert child.depths == one.depths and child.dim in (one.dim, other.dim)
        for own, *parents in zip(genes(child), genes(one), genes(other), strict=True):
            assert all(gene in pair for gene, *pair in zip(own, *parents, strict=True))


def test_mutations_change_as_many_genes_as_their_probabilities_say() -> None:
    space, random = dataclasses.replace(SMALL, mlp_ratios=tuple(range(1, 1001)), depths=((4, 4),)), Random(0)
    parent = space.draw(random)
    changed = [
        sum(a != b for a, b in zip(space.mutated(random, parent, 0, 0.2).mlp_ratios, parent.mlp_ratios, strict=True))
        for _ in range(500)
    ]
    assert np.mean(changed) / 4 == pytest.approx(0.2, abs=0.03)  # 2000 draws: a standard deviation of 0.009


def search(space: Space, windows: Sequence[Window] = (), **settings: Any) -> Search:
    return Search(space, "the space", windows, Settings(**settings), lambda a: figures(a, space, CIFAR))


def finished(running: Search) -> Search:
    while not running.finished:
        running.advance()
    return running


def every_score(space: Space, windows: Sequence[Window]) -> Iterator[float]:
    """Of all architectures but for the order of blocks and for heads, which do not matter to parameters and score."""
    ((low, high),) = space.depths
    for dim, depth in product(space.dims, range(low, high + 1)):
        for ratios in combinations_with_replacement(space.mlp_ratios, depth):
            found = figures(Architecture(dim, (depth,), ("ssa",) * depth, (8,) * depth, ratios, 4), space, CIFAR)
            if all(window.holds(found) for window in windows):
                yield found.score


def optima(dim: int, window: str, **settings: Any) -> int:
    """In how many of ten seeds a search of the tiny space at one width finds the optimum of the score."""
    space, windows = dataclasses.replace(SPACES["autost-tiny"], dims=(dim,)), [Window.parse("parameters", window)]
    optimum = max(every_score(space, windows))
    reached = 0
    for seed in range(10):
        done = finished(search(space, windows, seed=seed, **settings))
        reached += done.found[done.best].score == optimum
        assert len(done.found) <= 21 * 50
        assert all(window.holds(f) for window in windows for f in done.found.values())
    return reached


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "window"), [(192, "3M-4M"), (320, "11M-12M"), (384, "11M-12M")])
def test_the_search_finds_the_optimum_in_at_least_nine_of_ten_seeds(dim: int, window: str) -> None:
    assert optima(dim, window) >= 9


@pytest.mark.slow
def test_without_repair_the_published_search_misses_an_optimum_of_few_genes() -> None:
    assert optima(384, "11M-12M", repair=False) >= 9
    assert optima(192, "3M-4M", repair=False) == 0  # nine blocks, all of the smallest MLP ratio


def test_generations_have_the_published_sizes_and_parents_stay_the_best_so_far() -> None:
    running = search(SPACES["autost-tiny"], generations=3)
    for generation in range(4):
        running.advance()
        assert running.generation == generation
        assert len(running.population) == len(set(running.population)) == 50
        assert len(running.found) == 50 * (generation + 1)
        best = sorted(running.found, key=lambda a: -running.found[a].score)[:10]
        assert [running.found[a].score for a in running.parents] == [running.found[a].score for a in best]
    assert running.finished


def test_a_search_is_the_same_for_a_seed_and_when_it_is_resumed() -> None:
    windows = [Window.parse("parameters", "0.1M-0.3M")]
    options = {"generations": 4, "population": 20, "parents": 4, "mutations": 8, "crossovers": 8}
    whole = finished(search(SMALL, windows, **options))
    assert finished(search(SMALL, windows, **options)).state() == whole.state()
    assert finished(search(SMALL, windows, seed=1, **options)).state() != whole.state()
    begun = search(SMALL, windows, **options)
    begun.advance()
    begun.advance()
    resumed = search(SMALL, windows, **options)
    resumed.restore(json.loads(json.dumps(begun.state())))
    assert finished(resumed).state() == whole.state()
    assert list(resumed.found.items()) == list(whole.found.items())
    with pytest.raises(SearchError, match="its file is damaged"):
        resumed.restore({"generation": 1})


def test_what_no_ratio_brings_within_is_left_out() -> None:
    wide, narrow = Architecture(64, (3,), ("ssa",) * 3, (4,) * 3, (2.5,) * 3, 4), Window.parse("parameters", "50k")
    running = search(SMALL, [narrow])
    least, repaired = running._repaired(wide)
    assert set(least.mlp_ratios) == {1} and not narrow.holds(repaired)
    between = [Window.parse("parameters", "100k"), Window.parse("macs", "30M-9G")]  # one wants less, the other more
    assert not all(window.holds(search(SMALL, between)._repaired(wide)[1]) for window in between)


def test_latency_is_measured_only_of_what_all_other_windows_hold() -> None:
    asked: list[Architecture] = []

    def measured(architecture: Architecture) -> float:
        asked.append(architecture)
        return 0.001 * architecture.depth

    windows = [Window.parse("latency", "2ms"), Window.parse("parameters", "0.2M")]
    done = finished(
        Search(SMALL, "s", windows, Settings(generations=1, population=10), lambda a: figures(a, SMALL, CIFAR), measured)
    )
    assert {a.depth for a in asked} == {1, 2, 3} or {a.depth for a in asked} == {1, 2}
    assert all(figures(a, SMALL, CIFAR).parameters <= 0.2e6 for a in asked)
    assert all(a.depth <= 2 and f.latency == 0.001 * a.depth for a, f in done.found.items())


@pytest.mark.parametrize(
    ("figure", "text", "low", "high"),
    [
        ("parameters", "11M-12M", 11e6, 12e6),
        ("parameters", "12M", 0, 12e6),
        ("parameters", "500k - 1.5M", 5e5, 1.5e6),
        ("macs", "2G", 0, 2e9),
        ("energy", "500uJ-2mJ", 5e-4, 2e-3),
        ("latency", "5ms-.01s", 5e-3, 1e-2),
        ("parameters", "3000", 0, 3000),
    ],
)
def test_windows_are_read(figure: str, text: str, low: float, high: float) -> None:
    window = Window.parse(figure, text)
    assert (window.low, window.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("figure", "text", "message"),
    [
        ("parameters", "many", "'many' is no window of parameters"),
        ("parameters", "-12M", "no window"),
        ("parameters", "12m", "no window"),
        ("energy", "5", "no window of energy"),
        ("latency", "5mJ", "no window of latency"),
        ("parameters", "12M-11M", "begins above its end"),
    ],
)
def test_what_is_no_window_is_refused(figure: str, text: str, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Window.parse(figure, text)


def test_an_empty_space_tells_which_window_excludes_what() -> None:
    with pytest.raises(SearchError, match=r"has parameters within 30M-40M: the space has 943\.8k to 23M"):
        search(SPACES["autost-tiny"], [Window.parse("parameters", "30M-40M")])
    windows = [Window.parse("parameters", "20M-24M"), Window.parse("macs", "1G")]
    message = r"none of \d+ .* parameters within 20M-24M: \d+ of \d+ \(.*\); macs of at most 1G: \d+ of \d+ \(they have"
    with pytest.raises(SearchError, match=message):
        search(SPACES["autost-tiny"], windows, population=5).advance()


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=30))
def test_the_front_is_what_nothing_dominates(values: list[tuple[int, int, int]]) -> None:
    found = {Architecture(i, (), (), (), (), 1): Figures(s, p, 0, e) for i, (s, p, e) in enumerate(values)}

    def dominates(a: Figures, b: Figures) -> bool:
        at_least = a.score >= b.score and a.parameters <= b.parameters and a.energy <= b.energy
        return at_least and (a.score, a.parameters, a.energy) != (b.score, b.parameters, b.energy)

    wanted = {
        (f.score, f.parameters, f.energy) for f in found.values() if not any(dominates(other, f) for other in found.values())
    }
    chosen = front(found)
    assert {(f.score, f.parameters, f.energy) for f in chosen.values()} == wanted and len(chosen) == len(wanted)
    assert [f.score for f in chosen.values()] == sorted(f.score for f in chosen.values())
    order = by_front(list(found.values()))
    assert sorted(order) == list(range(len(values)))
    on = is_on_front(objectives(list(found.values())))
    assert on[order[: int(on.sum())]].all()


def test_parents_by_front_keep_cheap_ones_too() -> None:
    windows = [Window.parse("parameters", "1M")]
    spread = [
        max(f.energy for f in done.values()) / min(f.energy for f in done.values())
        for done in (front(finished(search(SMALL, windows, generations=5, select=s)).found) for s in ("score", "front"))
    ]
    assert spread[1] > 2


def test_arguments_that_make_no_model_are_refused() -> None:
    good = arguments(SMALL.draw(Random(0)), SMALL, CIFAR)
    for wrong in ({"dims": 3}, {"frame": "vit"}, {"attention": "softmax"}, {"depths": [1, 1]}, {"num_heads": [3]}):
        with pytest.raises(ModelError):
            create(good | wrong, CIFAR)


def test_a_model_knows_the_images_of_its_task() -> None:
    for task in (*TASKS.values(), Task(20, 1, 4, "cifar")):
        with torch.device("meta"):
            model = create(arguments(SMALL.draw(Random(0)), SMALL, task), task)
        assert model.pretrained_cfg["input_size"] == (task.in_chans, task.size, task.size)  # type: ignore[index]
        assert (model.num_classes, model.in_chans) == (task.num_classes, task.in_chans)


@pytest.mark.parametrize("name", SPACES)
def test_the_layer_that_sees_the_image_is_named(name: str) -> None:
    with torch.device("meta"):
        model = create(arguments(SPACES[name].draw(Random(0)), SPACES[name], TASKS["imagenet"]), TASKS["imagenet"])
    first: Any = model.get_submodule(model.pretrained_cfg["first_conv"])  # type: ignore[index]
    assert first.in_channels == 3


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["zoo", *map(str, arguments)])


def found(out: Path, *more: object) -> Any:
    return run("search", "--space", "autost-tiny", "--params", "1M-2M", "--generations", 2, "--population", 8, "-o", out, *more)


@pytest.mark.slow
def test_the_commands_find_and_make_a_model_that_is_trained(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    result = found(out, "--json", "--task", "cifar10")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads(out.read_text(encoding="utf-8"))
    assert 1e6 <= document["best"]["figures"]["parameters"] <= 2e6
    assert document["best"]["figures"]["score"] == max(entry["figures"]["score"] for entry in document["front"])
    assert document["best"] in document["front"]
    assert (tmp_path / "found.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert not list(tmp_path.glob("*.progress"))
    model = tmp_path / "model"
    result = run("create", out, "-o", model, "--member", 0, "--json")
    assert result.exit_code == 0, result.output
    cheapest = document["front"][0]
    assert json.loads(result.stdout)["parameters"] == cheapest["figures"]["parameters"]
    assert json.loads((model / "config.json").read_text())["model_args"]["dim"] == cheapest["architecture"]["dim"]
    shown = json.loads(run("show", model, "--json").stdout)["statistics"]
    assert 4 * (shown["layer_macs"] + shown["product_macs"]) == cheapest["figures"]["macs"]
    options = ["--max-steps", "1", "--batch-size", "4", "--img-size", "16", "--samples", "8", "--json"]
    result = CliRunner().invoke(cli, ["train", str(model), "-o", str(tmp_path / "trained"), *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parameters"] == cheapest["figures"]["parameters"]
    refused = CliRunner().invoke(cli, ["train", str(model), "-a", "dim=3", "-o", str(tmp_path / "other"), *options])
    assert refused.exit_code == 1 and "leave -a out" in refused.stderr


def test_an_interrupted_search_is_resumed_with_the_same_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "found.json", tmp_path / "whole.json"
    assert found(whole).exit_code == 0
    advance, turns = Search.advance, []

    def interrupted(self: Search) -> None:
        turns.append(self)
        if len(turns) == 3:
            raise KeyboardInterrupt
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "advance", interrupted)
        result = found(out)
    assert result.exit_code == 130 and not out.exists()
    assert found(out).exit_code == 2 and "continue it with --resume" in found(out).stderr
    other = found(out, "--resume", "--space", "spikingformer")
    assert other.exit_code == 2 and "begun with space autost-tiny, and would be resumed with spikingformer" in other.stderr
    seeded = found(out, "--resume", "--seed", 5)
    assert "{'seed': 0}, and would be resumed with {'seed': 5}" in seeded.stderr
    assert found(out, "--resume").exit_code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert json.loads(out.read_text()) == json.loads(whole.read_text())


def test_bad_requests_are_refused_and_lose_nothing(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    for options, message in [
        (["--space", "nano"], "there is no space 'nano'"),
        (["--task", "mnist"], "there is no task 'mnist'"),
        (["--params", "12M-11M"], "begins above its end"),
        (["--params", "1G-2G"], "the space has"),
        (["--resume"], "there is no unfinished search"),
        (["-o", tmp_path / "missing" / "found.json"], "does not exist"),
        (["-o", tmp_path / "found.svg"], "where the picture goes"),
    ]:
        result = found(out, *options)
        assert result.exit_code == 2 and message in result.stderr, result.output
    out.write_text("{}")
    assert found(out).exit_code == 2 and "exists already" in found(out).stderr
    assert found(out, "--overwrite").exit_code == 2 and out.read_text() == "{}"
    assert "is not a file of 'vit2snn search'" in run("create", out, "-o", tmp_path / "m").stderr
    out.unlink()
    assert found(out).exit_code == 0
    progress = out.with_name(out.name + ".progress")
    progress.write_text("mine")
    refused = found(out, "--overwrite", "--seed", 1)
    assert refused.exit_code == 2 and "no unfinished search" in refused.stderr and progress.read_text() == "mine"
    progress.unlink()
    assert found(out, "--overwrite", "--seed", 1).exit_code == 0
    beyond = run("create", out, "-o", tmp_path / "m", "--member", 999)
    assert beyond.exit_code == 2 and "has the members 0 to" in beyond.stderr
    assert not (tmp_path / "m").exists()
