"""Replayed graphs give what the network gives: on a GPU, or on the CPU by a tape of what torch was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import brief, make_vit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vit2snn.convert import RECIPES, SpikingModel, to_spiking
from vit2snn.errors import ModelError
from vit2snn.measure import anytime
from vit2snn.spiking import analog, eager, graphed, graphs
from vit2snn.spiking.graphs import Graphed

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}


class Tape(TorchDispatchMode):
    """Stands in for a CUDA graph: records calls of torch, and makes them again with the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in READS:
            raise torch.AcceleratorError(f"{name} is not permitted when the stream is capturing")
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, output in self.calls:
            for kept, new in zip(tree_leaves(output), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


def warm_up(network: Any, *run: Any) -> int:
    outputs = [list(network.stream(*run)) for _ in range(graphs.WARM)]
    return len(outputs[0])


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    monkeypatch.setattr(graphs, "can_record", lambda x: True)
    monkeypatch.setattr(graphs, "_warm_up", warm_up)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", lambda tape, pool: tape)
    with eager():  # the tape does not see kernels
        yield torch.device("cpu")


def converted(recipe: str, device: torch.device) -> SpikingModel:
    ann = make_vit(depth=1).to(device)
    return to_spiking(ann, brief(recipe).changed(timesteps=3), torch.randn(4, 3, 16, 16, device=device))


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_replays_give_the_networks_logits(recipe: str, device: torch.device) -> None:
    snn = converted(recipe, device)
    fast = graphed(snn)
    for chunk in (None, 2):
        for number in range(3):
            x = torch.randn(2, 3, 16, 16, device=device)
            with torch.inference_mode() if number == 1 else torch.no_grad():
                assert close(fast(x, 3, chunk), snn(x, 3, chunk))
    assert len(fast._recordings) == 2 and fast.recipe is snn.recipe


def test_changes_of_the_network_are_seen(device: torch.device) -> None:
    snn = converted("faithful", device)
    fast, x = graphed(snn), torch.randn(1, 3, 16, 16, device=device)
    before = fast(x)
    with torch.no_grad():
        snn.network.head.weight.mul_(2)  # type: ignore[union-attr, operator]
    assert not close(fast(x), before) and close(fast(x), snn(x))
    neuron = snn.neurons()["head.neuron"]
    neuron.threshold = 3 * neuron.threshold
    assert close(fast(x), snn(x))
    with analog():
        assert close(fast(x, 1), snn.ann(x).unsqueeze(0))
    assert close(fast(x), snn(x))


def test_runs_may_stop_early_and_must_not_overlap(device: torch.device) -> None:
    snn = converted("faithful", device)
    fast, x = graphed(snn), torch.randn(1, 3, 16, 16, device=device)
    first = next(fast.stream(x, 3, chunk=1))
    assert close(fast(x, 3, chunk=1)[:1], first)
    one, other = fast.stream(x, 3, chunk=1), fast.stream(-x, 3, chunk=1)
    next(one), next(other)
    with pytest.raises(ModelError, match="overlap"):
        next(one)
    next(other)
    logits, taken = anytime(fast, x, 0.9)
    expected, exits = anytime(snn, x, 0.9)
    assert close(logits, expected) and torch.equal(taken, exits)


def test_the_last_recordings_are_kept(device: torch.device) -> None:
    fast = graphed(converted("faithful", device))
    for timesteps in range(1, graphs.KEPT + 3):
        fast(torch.randn(1, 3, 16, 16, device=device), timesteps)
    assert len(fast._recordings) == graphs.KEPT


def test_what_cannot_be_recorded_is_refused(device: torch.device) -> None:
    snn = converted("faithful", device)
    x = torch.randn(1, 3, 16, 16, device=device)
    snn.network.register_forward_hook(lambda module, inputs, output: output * float(output.max() > -1e9))
    with pytest.raises(ModelError, match=r"cannot be recorded: .*captur"):
        graphed(snn)(x)
    with pytest.raises(ModelError, match="training mode"):
        graphed(converted("faithful", device).train())(x)


def test_on_the_cpu_the_network_runs() -> None:
    with nullcontext():
        snn = converted("faithful", torch.device("cpu"))
        fast, x = graphed(snn), torch.randn(2, 3, 16, 16, requires_grad=True)
        logits = fast(x)
    assert isinstance(fast, Graphed) and torch.equal(logits, snn(x)) and not logits.requires_grad and not fast._recordings
