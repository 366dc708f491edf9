"""The coded neuron: the one neuron of converted networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .alphabet import Alphabet
from .coding import Coding, emit, innovation, integrate
from .time import Neuron


class Event(NamedTuple):
    """What one neuron did in one timestep: its target, the spikes it sent, and the value its receivers now read."""

    t: int
    target: Tensor
    spikes: list[Tensor]
    decoded: Tensor


class CodedNeuron(Neuron):
    """Stands in front of a synaptic operation and replaces its input by the decoded value of spikes (see `coding`).

    Buffers, empty until calibration sets them, with S and C broadcasting against one image's input ``[...]``:

    * ``threshold`` ``[steps, *S]``: θ of each timestep; later timesteps keep the last one;
    * ``bias`` ``[steps, *C]``: c of each timestep; later timesteps have none;
    * ``prior`` ``[...]`` or a scalar: r.

    Args:
        alphabet: the spikes; None for an exact (analog) neuron, which passes its input through.
        coding: rate or differential.
        axes: the axes of one image's input, negative, along which thresholds and biases may vary ("channels").
        per_channel: a threshold for each channel instead of one for the tensor.
        spikes_per_step: the longest burst in one timestep.
    """

    threshold: Tensor
    bias: Tensor
    prior: Tensor

    def __init__(
        self,
        alphabet: Alphabet | None,
        coding: Coding = Coding.DIFFERENTIAL,
        axes: tuple[int, ...] = (-1,),
        per_channel: bool = False,
        spikes_per_step: int = 1,
    ) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.coding = coding
        self.axes = axes
        self.per_channel = per_channel
        self.spikes_per_step = spikes_per_step
        self.probe: Callable[[Event], None] | None = None
        self.analog = alphabet is None
        for name in ("threshold", "bias", "prior"):
            self.register_buffer(name, torch.empty(0))

    def step(self, t: int, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """One timestep: ``x`` is the target x[t], the state is d[t-1], the output is m[t]. All ``[B, ...]``."""
        if self.analog or self.alphabet is None:
            if self.probe:
                self.probe(Event(t, x, [], x))
            return x, x
        if not self.threshold.numel():
            raise RuntimeError("this neuron has no thresholds yet: calibrate the network before running it")
        d = torch.zeros_like(x) if state is None else state
        u = innovation(self.coding, t, x - self.prior, d)
        spikes = emit(self.alphabet, u, self.threshold[min(t, len(self.threshold) - 1)], self.spikes_per_step)
        d = integrate(self.coding, t, d, spikes, self.bias[t] if t < len(self.bias) else 0.0)
        decoded = self.prior + d
        if self.probe:
            self.probe(Event(t, x, spikes, decoded))
        return decoded, d

    def extra_repr(self) -> str:
        """The alphabet and the coding, as ``print(model)`` shows them."""
        if self.alphabet is None:
            return "analog"
        return f"{self.alphabet.kind}, levels={self.alphabet.levels}, coding={self.coding.value}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The shapes of the tables are known only from calibration, so they are taken from the file.
        for name in ("threshold", "bias", "prior"):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != getattr(self, name).shape:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)


@contextmanager
def analog(network: nn.Module) -> Iterator[None]:
    """Within this context every coded neuron passes its input through: the network computes what the ANN computes."""
    found = [module for module in network.modules() if isinstance(module, CodedNeuron)]
    before = [neuron.analog for neuron in found]
    try:
        for neuron in found:
            neuron.analog = True
        yield
    finally:
        for neuron, value in zip(found, before, strict=True):
            neuron.analog = value


@contextmanager
def probing(network: nn.Module, probes: Mapping[str, Callable[[Event], None]]) -> Iterator[None]:
    """Within this context the coded neurons named in ``probes`` report every timestep to their probe."""
    found = {name: module for name, module in network.named_modules() if name in probes}
    try:
        for name, neuron in found.items():
            neuron.probe = probes[name]
        yield
    finally:
        for neuron in found.values():
            neuron.probe = None
