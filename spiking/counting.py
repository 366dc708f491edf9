"""Counting spikes as they are sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .neuron import CodedNeuron, Event, probing
from .shards import total
from .time import Neuron, neurons


class SpikeCount:
    """Spikes, the operations they cause, and neurons by timestep, all ``[T]``, summed over images; they grow with a run.

    A coded neuron's burst counts spike by spike, and a membrane neuron's integer as so many.

    Args:
        fan_out: of coded neurons by name, the operations that a spike causes (see `vit2snn.convert.dataflow`); 0 if left out.
        synchronous: whether the neurons are layer-synchronous: then the events of a timestep hold all spikes so far.
    """

    def __init__(self, fan_out: Mapping[str, float] | None = None, synchronous: bool = False) -> None:
        self.fan_out, self.synchronous = fan_out or {}, synchronous
        self.spikes = torch.zeros(0, dtype=torch.float64)
        self.operations = torch.zeros(0, dtype=torch.float64)
        self.neurons = torch.zeros(0, dtype=torch.float64)

    def over_processes(self) -> SpikeCount:
        """The sum of the counts of all processes of the group."""
        whole = SpikeCount(self.fan_out, self.synchronous)
        whole.spikes, whole.operations, whole.neurons = map(total, (self.spikes, self.operations, self.neurons))
        return whole

    def per_neuron(self) -> Tensor:
        """Mean over neurons and images of the spikes sent so far, ``[T]``."""
        return self._so_far(self.spikes / self.neurons.clamp(min=1))

    def caused(self) -> Tensor:
        """The synaptic operations of coded neurons' spikes so far, of all images together, ``[T]``."""
        return self._so_far(self.operations)

    def _so_far(self, counts: Tensor) -> Tensor:
        return counts if self.synchronous else counts.cumsum(0)

    def add(self, start: int, spikes: Tensor, neurons: int, fan_out: float = 0.0) -> None:
        """Note ``spikes`` ``[timesteps]`` of the timesteps from ``start`` on, sent by ``neurons`` neurons."""
        missing = start + len(spikes) - len(self.spikes)
        if missing > 0:
            self.spikes, self.operations, self.neurons = (
                torch.cat([x, x.new_zeros(missing)]) for x in (self.spikes, self.operations, self.neurons)
            )
        self.spikes[start : start + len(spikes)] += spikes.cpu()
        self.operations[start : start + len(spikes)] += spikes.cpu() * fan_out
        self.neurons[start : start + len(spikes)] += neurons

    def see_event(self, name: str, event: Event) -> None:
        """The probe of the coded neuron of that name."""
        sent = sum(int(spike.count_nonzero()) for spike in event.spikes)
        self.add(event.t, torch.tensor([sent], dtype=torch.float64), event.target.numel(), self.fan_out.get(name, 0.0))

    def see_output(self, neuron: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """The forward hook of a membrane neuron."""
        assert isinstance(neuron, Neuron)
        folded = output.detach().unflatten(0, (neuron.clock.timesteps, -1)).flatten(1)
        self.add(neuron.clock.elapsed, folded.abs().sum(1, dtype=torch.float64), folded.shape[1])


@contextmanager
def counting_spikes(network: nn.Module, count: SpikeCount | None = None) -> Iterator[SpikeCount]:
    """Within this context, the count (a new one unless given) takes in what the neurons of ``network`` send."""
    count = SpikeCount() if count is None else count
    coded = {name: partial(count.see_event, name) for name, neuron in neurons(network) if isinstance(neuron, CodedNeuron)}
    membranes = [neuron for _, neuron in neurons(network) if not isinstance(neuron, CodedNeuron)]
    handles = [neuron.register_forward_hook(count.see_output) for neuron in membranes]
    try:
        with probing(network, coded):
            yield count
    finally:
        for handle in handles:
            handle.remove()
