"""Runs own their state: several threads, runs within runs, exceptions, and copies of networks."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import timm
import torch
from conftest import brief, make_vit
from torch import Tensor, nn

import vit2snn
from vit2snn import SpikingModel, to_spiking
from vit2snn.measure import Meter
from vit2snn.spiking import analog, eager, present_run, running_mean, stream
from vit2snn.spiking.native import is_eager

T = 3


@pytest.fixture(scope="module", params=["faithful", "qkformer-membrane"])
def snn(request: pytest.FixtureRequest) -> SpikingModel:
    torch.manual_seed(0)
    return to_spiking(make_vit(), brief(request.param), torch.randn(12, 3, 16, 16))


def in_threads(*jobs: Callable[[], object], times: int = 10) -> list[BaseException]:
    """Run each job so often in a thread of its own, all at the same time; what they raised."""
    raised: list[BaseException] = []
    begin = threading.Barrier(len(jobs))

    def work(job: Callable[[], object]) -> None:
        begin.wait()
        try:
            for _ in range(times):
                job()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def expecting(call: Callable[[], Tensor]) -> Callable[[], None]:
    """A job that wants what the call gives now."""
    with torch.no_grad():
        wanted = call()

    def job() -> None:
        with torch.no_grad():
            assert torch.equal(call(), wanted)

    return job


def test_one_network_gives_in_several_threads_what_it_gives_alone(snn: SpikingModel) -> None:
    x, y = torch.randn(3, 3, 16, 16), torch.randn(2, 3, 16, 16)
    jobs = [lambda: snn(x, T), lambda: snn(y, T, chunk=1), lambda: snn.ann(x)]
    assert not in_threads(*map(expecting, jobs))


def test_an_unrelated_module_in_another_thread_changes_nothing(snn: SpikingModel) -> None:
    x, other = torch.randn(3, 3, 16, 16), nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(20)])
    assert not in_threads(expecting(lambda: snn(x, T)), expecting(lambda: other(x[:, 0, :, :8])), times=40)


def test_spiking_networks_of_the_zoo_run_in_several_threads() -> None:
    model = timm.create_model("spikformer_4_384_cifar10", dim=48, num_heads=2, depth=1, timesteps=T).eval()
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert not in_threads(expecting(lambda: model.readout(x)), expecting(lambda: model.readout(y, chunk=1)), times=5)


def test_what_one_thread_counts_is_not_touched_by_another(snn: SpikingModel) -> None:
    x, y = torch.randn(2, 3, 16, 16), torch.randn(5, 3, 16, 16)

    def spent(images: Tensor) -> Tensor:
        with Meter(snn.network) as meter:
            snn(meter.show(images), T, chunk=1)
        return meter.spent()

    assert not in_threads(expecting(lambda: spent(x)), expecting(lambda: spent(y)), expecting(lambda: snn(y, T)), times=4)


def test_settings_of_a_thread_are_its_own() -> None:
    seen: list[tuple[bool, object]] = []
    with eager(), analog():
        thread = threading.Thread(target=lambda: seen.append((is_eager(), present_run())))
        thread.start()
        thread.join()
    assert seen == [(False, None)]


@torch.no_grad()
def test_runs_within_a_run_change_nothing(snn: SpikingModel) -> None:
    x, y = torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)
    expected, of_ann = snn(x, T, chunk=1), snn.ann(y)
    steps, others = stream(snn.network, x, T, chunk=1), stream(snn.network, y, T, chunk=1)
    found = []
    for step in steps:
        found.append(step)
        next(others)
        assert torch.equal(snn.ann(y), of_ann)
        snn(y, 2)
    assert torch.equal(torch.cat(list(running_mean(found) if snn.teacher else found)), expected)


@torch.no_grad()
def test_a_run_within_a_module_of_a_run_changes_nothing(snn: SpikingModel) -> None:
    x = torch.randn(2, 3, 16, 16)
    expected = snn(x, T)
    ran: list[Tensor] = []

    def within(module: nn.Module, inputs: object, output: object) -> None:
        if not ran:
            ran.append(x)
            ran.append(snn(x, T, chunk=1))

    handle = snn.network.get_submodule("blocks.1").register_forward_hook(within)
    try:
        assert torch.equal(snn(x, T), expected)
    finally:
        handle.remove()
    assert torch.allclose(ran[1], expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("place", ["blocks.0.attn", "blocks.1.mlp", "head"])
def test_an_exception_within_a_forward_leaves_no_trace(snn: SpikingModel, place: str) -> None:
    x = torch.randn(2, 3, 16, 16)
    expected = snn(x, T)

    def fail(*_: object) -> None:
        raise KeyError("stop")

    handle = snn.network.get_submodule(place).register_forward_hook(fail)
    with pytest.raises(KeyError, match="stop"):
        snn(x, T, chunk=1)
    handle.remove()
    assert present_run() is None
    assert torch.equal(snn(x, T), expected)


@torch.no_grad()
@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy, copy.copy])
def test_copies_give_the_same(snn: SpikingModel, copied: Callable[[SpikingModel], SpikingModel]) -> None:
    x = torch.randn(2, 3, 16, 16)
    again = copied(snn)
    assert isinstance(again, vit2snn.SpikingModel)
    assert torch.equal(again(x, T), snn(x, T))
    assert torch.equal(again.ann(x), snn.ann(x))
