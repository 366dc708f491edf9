"""How much memory a run of a network takes: counted on shapes alone, before anything is computed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..spiking import CodedNeuron, SpikingNetwork, analog, simulate
from .calls import tensors_in
from .signals import on_meta

MOMENTS = 2  # of each weight, which Adam keeps


class Peak(TorchDispatchMode):
    """Within this context, all memory that tensors get is counted until it is free again; on torch's meta device, too.

    Attributes:
        now: bytes that are taken.
        most: bytes that were taken at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: Any = WeakIdKeyDictionary()  # storages, of which views are no others

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in([result]):
            self.count(tensor.untyped_storage())
        return result

    def count(self, storage: UntypedStorage) -> None:
        """Count this, unless it is; of what was there before, such as weights, nobody else does."""
        if storage not in self._known:
            self._known[storage] = True
            self._take(storage.nbytes())
            weakref.finalize(storage, self._take, -storage.nbytes())

    def _take(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def footprint(network: SpikingNetwork, images: Sequence[int], timesteps: int, trains: bool = False) -> int | None:
    """Bytes that a run of a network takes at least, with its weights, in the precision that these have.

    The rule: a network with coded neurons goes through its timesteps one by one, and each neuron carries a value as large as
    its input from one to the next. These values, of all layers, are most of what there is. A network with membrane neurons
    alone, and a wavefront, compute all timesteps at once, layer by layer, so that what the largest layer reads and makes is
    most. A step of training computes all timesteps at once in all, and keeps what every layer reads; a coded neuron keeps its
    innovation beside. Weights then have gradients and moments. What is measured on the way takes up to as much again.

    Args:
        network: it is neither run nor changed.
        images: shape of a batch, ``[B, C, H, W]``, or of frames, ``[T, B, C, H, W]``.
        timesteps: T.
        trains: whether the run is a step of training, by Adam.

    Returns:
        The number; None if a module looks at values, so that the run is not known before it is made.
    """
    shadow = on_meta(network.network).train(trains).requires_grad_(trains)
    coded = [module for module in shadow.modules() if isinstance(module, CodedNeuron)]
    kept: dict[nn.Module, Tensor] = {}
    for neuron in coded:
        if neuron.alphabet is not None and (trains or not (neuron.synchronous or neuron.lag)):
            neuron.register_forward_hook(partial(_keep, kept))
        elif neuron.alphabet is not None and neuron.lag:
            neuron.register_forward_hook(_make)
    # At the second timestep there is what the first one has left; later ones take no more.
    at_once = trains or not coded or any(neuron.lag for neuron in coded)
    steps, chunk = (timesteps, None) if at_once else (min(timesteps, 2), 1)
    with Peak() as peak, analog(), torch.set_grad_enabled(trains):
        for weight in chain(shadow.parameters(), shadow.buffers()):
            peak.count(weight.untyped_storage())
        moments = MOMENTS * peak.now if trains else 0
        x = torch.empty(*images, dtype=next(shadow.parameters()).dtype, device="meta")
        try:
            logits = shadow.readout(x, steps) if isinstance(shadow, SpikingNetwork) else simulate(shadow, x, steps, chunk)
            if trains:
                logits.sum().backward()
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
            return None
    most: int = peak.most
    return most + moments


def _make(neuron: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """Stands for what a neuron of a wavefront makes: its input, seen later, and its output."""
    _seen = torch.empty_like(output)
    return torch.empty_like(output)


def _keep(kept: dict[nn.Module, Tensor], neuron: nn.Module, inputs: object, output: Tensor) -> None:
    """Stands for what a neuron keeps beside its output, which it hands on as it came in."""
    kept[neuron] = torch.empty_like(output)
