"""Time and memory of converted networks on a GPU, over those of T passes of the ANN.

Models of timm with random weights, recipe `faithful`, calibrated on a few images of noise; later timesteps than the recipe's
keep its last thresholds. ``at once`` computes all timesteps of a layer before the next layer, ``chunk=1`` one timestep of all
layers at a time, and ``graphs`` replays the former as a CUDA graph. Each is compared with the ANN of the same type, and
``graphs`` with the ANN replayed as a graph; ``over_eager`` compares all with the ANN as it is. ``SpikingJelly IF`` is described
in `simulation`.

All are taken in turns. Memory is what a run adds at its peak to the tensors that are there, ``peak_ratio`` counts weights and
images too.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from machine import Memory, medians, memory, seconds
from parts import Budget, Row, Setting, attempt, no_time
from simulation import IMAGE, MODELS, Case, integrate_and_fire, timm_model
from torch import Tensor, nn

from vit2snn import to_spiking
from vit2snn.spiking import graphed

Call = Callable[[], Tensor]
ANN, ANN_GRAPH = "ANN", "ANN, graph"
MOST = 7  # turns
SMALL = 64  # images up to which graphs matter


@dataclass(frozen=True)
class Sizes:
    """What is measured, the more telling first."""

    models: tuple[str, ...]
    timesteps: tuple[int, ...]
    batches: tuple[int, ...]


FULL = Sizes((*MODELS, "vit_large_patch16_224"), (4, 1, 16), (64, 1, 256))
QUICK = Sizes(MODELS[:1], (2,), (1,))


def networks(setting: Setting, budget: Budget) -> Iterator[Row]:
    """A row for each model, type, batch size, T and way."""
    sizes = QUICK if setting.quick else FULL
    for index, model in enumerate(sizes.models):
        yield from networks_of(model, sizes, setting, budget.share(1 / (len(sizes.models) - index)))


def networks_of(model: str, sizes: Sizes, setting: Setting, budget: Budget) -> Iterator[Row]:
    """The rows of one model."""
    made: dict[str, Any] = {}

    def convert() -> Row:
        ann = timm_model(model).to(setting.device)
        images = torch.randn(2 if setting.quick else 8, *IMAGE, device=setting.device)
        took = seconds(lambda: made.update(ann=ann, snn=to_spiking(ann, "faithful", images)))
        return {"images": len(images), "seconds": took}

    yield attempt(f"{model}, converted", convert)
    if "snn" not in made:
        return
    for name, dtype in setting.types.items():
        pair = Pair(model, *(copy.deepcopy(made[kind]).to(dtype) for kind in ("ann", "snn")), setting.device)
        for batch, timesteps in itertools.product(sizes.batches, sizes.timesteps):
            yield from pair.compare(f"{model}, {name}, batch {batch}, T = {timesteps}", batch, timesteps, budget)


@dataclass(frozen=True)
class Pair:
    """An ANN and the network that it became, of one type."""

    model: str
    ann: nn.Module
    snn: Any
    device: str

    @torch.inference_mode()
    def compare(self, case: str, batch: int, timesteps: int, budget: Budget) -> Iterator[Row]:
        """A row for each way, or one that says why there is none."""
        images = torch.randn(batch, *IMAGE, device=self.device).to(next(self.ann.parameters()).dtype)
        calls, held = self.calls(images, timesteps), dict[str, Memory]()
        first = attempt(case, lambda: {"seconds": [seconds(calls[ANN]) for _ in range(3)][-1]})
        if "seconds" not in first:
            yield first
            return
        needed = 1.5 * first["seconds"] * (timesteps * len(calls) + 2)  # of a turn
        repeats = min(MOST, int(budget.left / 3 / needed) - 2)  # no case takes more than a third of what is left
        if repeats < 1:
            yield no_time(case, 3 * needed, budget)
            return
        for way, call in list(calls.items()):
            shown = attempt(f"{case}, {way}", lambda call=call: {"memory": memory(call, self.device)})
            if "memory" in shown:
                held[way] = shown["memory"]
            else:
                del calls[way]
                yield shown
        timed = attempt(case, lambda: {"took": medians(calls, repeats)})
        took = timed.pop("took", None)
        if took is None:
            yield timed
            return
        for way, over in {"at once": ANN, "chunk=1": ANN, "graphs": ANN_GRAPH}.items():
            if way in took and over in took:
                yield {"case": f"{case}, {way}", "repeats": repeats} | self._over(way, over, timesteps, images, took, held)
        if find_spec("spikingjelly") and timesteps == 4 and batch == SMALL and images.dtype == torch.float32:
            yield attempt(f"{case}, SpikingJelly IF", partial(self.peer, calls[ANN], batch, timesteps, repeats))

    def _over(
        self, way: str, over: str, timesteps: int, images: Tensor, took: dict[str, float], held: dict[str, Memory]
    ) -> Row:
        peaks = self._peak(self.snn, images, held[way]), self._peak(self.ann, images, held[over])
        return {
            "ms": 1000 * took[way], "ann_ms": 1000 * took[over], "time_ratio": took[way] / (timesteps * took[over]),
            "over_eager": took[way] / (timesteps * took[ANN]), "memory_mb": held[way].added,
            "ann_memory_mb": held[over].added, "memory_ratio": held[way].added / max(held[over].added, 1e-3),
            "peak_ratio": peaks[0] / peaks[1],
        }  # fmt: skip

    def calls(self, images: Tensor, timesteps: int) -> dict[str, Call]:
        """What is taken in turns."""
        found: dict[str, Call] = {
            ANN: partial(self.ann, images),
            "at once": partial(self.snn.readout, images, timesteps),
            "chunk=1": partial(self.snn.readout, images, timesteps, 1),
        }
        if len(images) <= SMALL:
            found[ANN_GRAPH] = Replayed(self.ann, images)
            found["graphs"] = partial(graphed(self.snn).readout, images, timesteps)
        return found

    def peer(self, ann: Call, batch: int, timesteps: int, repeats: int) -> Row:
        """SpikingJelly's neurons at the same places."""
        theirs = integrate_and_fire(Case(self.model, "", timesteps, batch, None, self.device))
        took = medians({ANN: ann, "theirs": theirs}, repeats)
        ratio = took["theirs"] / (timesteps * took[ANN])
        return {"repeats": repeats, "ms": 1000 * took["theirs"], "ann_ms": 1000 * took[ANN], "time_ratio": ratio}

    @staticmethod
    def _peak(network: nn.Module, images: Tensor, held: Memory) -> float:
        """Megabytes, with weights and images."""
        tensors = itertools.chain(network.parameters(), network.buffers(), [images])
        return held.added + sum(tensor.nbytes for tensor in tensors) / 2**20


class Replayed:
    """A network on images of one shape, recorded as a CUDA graph when it is first called; on the CPU it is just called."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.network, self.images, self.graph = network, images, None

    def __call__(self) -> Tensor:
        if not self.images.is_cuda:
            return self.network(self.images)
        if self.graph is None:
            self._record()
        self.shown.copy_(self.images)
        self.graph.replay()
        return self.output.clone()

    def _record(self) -> None:
        self.shown, beside = self.images.clone(), torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):
                self.network(self.shown)
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self.network(self.shown)
