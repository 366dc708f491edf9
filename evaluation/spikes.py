"""Counting spikes as they are sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, Event, Neuron, neurons, probing
from ..spiking.shards import total


class SpikeCount:
    """Spikes and neurons by timestep, both ``[T]``, summed over images; they grow as the network runs.

    A coded neuron's burst counts spike by spike, and a membrane neuron's integer as so many.
    """

    def __init__(self) -> None:
        self.spikes = torch.zeros(0, dtype=torch.float64)
        self.neurons = torch.zeros(0, dtype=torch.float64)

    def over_processes(self) -> SpikeCount:
        """The sum of the counts of all processes of the group."""
        whole = SpikeCount()
        whole.spikes, whole.neurons = total(self.spikes), total(self.neurons)
        return whole

    def per_neuron(self) -> Tensor:
        """Mean over neurons and images of the spikes sent so far, ``[T]``."""
        return (self.spikes / self.neurons.clamp(min=1)).cumsum(0)

    def add(self, start: int, spikes: Tensor, neurons: int) -> None:
        """Note ``spikes`` ``[timesteps]`` of the timesteps from ``start`` on, sent by ``neurons`` neurons."""
        missing = start + len(spikes) - len(self.spikes)
        if missing > 0:
            self.spikes, self.neurons = (torch.cat([x, x.new_zeros(missing)]) for x in (self.spikes, self.neurons))
        self.spikes[start : start + len(spikes)] += spikes.cpu()
        self.neurons[start : start + len(spikes)] += neurons

    def see_event(self, event: Event) -> None:
        """The probe of a coded neuron."""
        sent = sum(int(spike.count_nonzero()) for spike in event.spikes)
        self.add(event.t, torch.tensor([sent], dtype=torch.float64), event.target.numel())

    def see_output(self, neuron: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """The forward hook of a membrane neuron."""
        assert isinstance(neuron, Neuron)
        folded = output.detach().unflatten(0, (neuron.clock.timesteps, -1)).flatten(1)
        self.add(neuron.clock.elapsed, folded.abs().sum(1, dtype=torch.float64), folded.shape[1])


@contextmanager
def counting_spikes(network: nn.Module, count: SpikeCount | None = None) -> Iterator[SpikeCount]:
    """Within this context, the count (a new one unless given) takes in what the neurons of ``network`` send."""
    count = SpikeCount() if count is None else count
    coded = {name: count.see_event for name, neuron in neurons(network) if isinstance(neuron, CodedNeuron)}
    membranes = [neuron for _, neuron in neurons(network) if not isinstance(neuron, CodedNeuron)]
    handles = [neuron.register_forward_hook(count.see_output) for neuron in membranes]
    try:
        with probing(network, coded):
            yield count
    finally:
        for handle in handles:
            handle.remove()
