"""Which module broke it: error, saturation, dead neurons and firing of every coded neuron or spiking block, against the ANN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..spiking import CodedNeuron, Event, SpikingNetwork, analog, evaluating, present_run, probing, simulate
from ..spiking.shards import largest, total
from ..tracing import outputs_of
from ..tracing.decoded import number_of
from .meter import Meter

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class ModuleError:
    """One neuron, or one block.

    Attributes:
        name: of the neuron, or of the block.
        module: that it belongs to.
        relative_error: of what it has decoded or put out, after each timestep; over a spike's size where the ANN's is 0.
        spikes_per_neuron: in all timesteps together.
        saturation: share of values whose innovation is beyond what the neuron can send, in each timestep; of a
            layer-synchronous neuron, or one of a wavefront, beyond what it can send in all its steps. Empty for blocks.
        dead: share of the neurons that never fired, of those that calibration did not silence.
    """

    name: str
    module: str
    relative_error: list[float]
    spikes_per_neuron: float
    saturation: list[float]
    dead: float


@torch.no_grad()
def diagnose(network: SpikingNetwork, images: Tensor, timesteps: int | None = None) -> list[ModuleError]:
    """Compare every neuron with the ANN on the same images, worst first by the error at the last timestep.

    The relative error is ‖m[t] - x‖ / ‖x‖ over all images and positions that do not keep silent, where x is the ANN's
    activation: it includes what the neuron inherits from those before it. The blocks of a spike-driven network are compared
    instead of its neurons: the mean over time of what a block has put out so far with what the ANN's block puts out.

    All processes of a ``torch.distributed`` group call this, each with images of its own, and get the figures over all.

    Args:
        network: that came from an ANN.
        images: ``[B, C, H, W]``, a few; the ANN's activations are held in memory.
        timesteps: T; the network's unless given.
    """
    timesteps = network.timesteps if timesteps is None else timesteps
    modules = {name: network.network.get_submodule(name) for name in network.compared}
    coded = {name: module for name, module in modules.items() if isinstance(module, CodedNeuron)}
    with evaluating(network):
        rows = list(_neurons(network, coded, images, timesteps) if coded else _blocks(network, images, timesteps))
    return sorted(rows, key=lambda row: -row.relative_error[-1])


def _neurons(
    network: SpikingNetwork, names: Mapping[str, CodedNeuron], images: Tensor, timesteps: int
) -> Iterator[ModuleError]:
    """The coded neurons beside the ANN's activations."""
    seen: dict[str, _Seen] = {}

    def remember(name: str, event: Event) -> None:
        seen[name] = _Seen(names[name], event.target)

    def compare(name: str, event: Event) -> None:
        run = present_run()
        if run is None or not run.whole or run.timesteps == timesteps:  # the runs of fewer timesteps are not looked at
            seen[name].compare(event)

    with probing(network.network, _bind(names, remember)), analog():
        simulate(network.network, images, 1)
    with probing(network.network, _bind(names, compare)):
        network.readout(images, timesteps, chunk=1)
    for name in names:
        yield seen[name].row(name, network.compared[name])


def _bind(names: Iterable[str], see: Callable[[str, Event], None]) -> dict[str, Callable[[Event], None]]:
    return {name: partial(see, name) for name in names}


@dataclass
class _Seen:
    """One coded neuron in all timesteps, beside the ANN's activation ``[B, ...]``; figures are read in the end."""

    neuron: CodedNeuron
    reference: Tensor
    errors: list[Tensor] = field(default_factory=list)
    saturated: list[Tensor] = field(default_factory=list)
    sent: list[Tensor] = field(default_factory=list)
    fired: Tensor | None = None

    def compare(self, event: Event) -> None:
        """A timestep."""
        neuron = self.neuron
        self.errors.append(neuron.speaking(event.decoded - self.reference).norm())
        sent = number_of(event.spikes) if event.spikes else torch.zeros_like(event.target)
        self.sent.append(sent.sum(dtype=torch.float64))
        fired = sent.sum(0) > 0
        self.fired = fired if self.fired is None else self.fired | fired
        self.saturated.append(self._beyond(event).sum() if event.spikes else torch.zeros_like(self.sent[0]))

    def _beyond(self, event: Event) -> Tensor:
        """Where the neuron would have to send more than it can."""
        neuron = self.neuron
        assert neuron.alphabet is not None
        digits = neuron.synchronous or neuron.lag  # of one value, which all timesteps are spent on
        taken = len(neuron.steps_by(event.t)) if neuron.synchronous else event.t + 1
        reach = neuron.threshold[:taken].sum(0) if digits else neuron.ladder(event.t).threshold
        u = event.target - neuron.prior
        if neuron.alphabet.centred:
            return neuron.speaking(u).abs() > reach / 2
        if not digits:
            held = neuron.coding.held(event.t, event.before, neuron.prior)
            u = neuron.coding.innovation(event.t, event.target, held)
        return neuron.speaking(neuron.alphabet.magnitudes(u)) > neuron.spikes_per_step * reach

    def row(self, name: str, module: str) -> ModuleError:
        """The figures over all processes."""
        all_sent = torch.stack(self.sent[-1:] if self.neuron.synchronous else self.sent).sum()
        values = torch.full_like(all_sent, self.reference.numel())
        spikes, count, *saturated = _totals(all_sent, values, *self.saturated)
        speaks = self.neuron.speaking(torch.ones_like(self.reference[:1]))[0] != 0
        assert self.fired is not None
        fired = largest((self.fired & speaks).int())
        dead = 1 - float(fired.sum()) / max(float(speaks.sum()), 1)
        spike = float(self.neuron.threshold.amax()) if self.neuron.threshold.numel() else TINY
        errors = _relative(self.errors, self.neuron.speaking(self.reference), spike)
        return ModuleError(name, module, errors, spikes / count, [beyond / count for beyond in saturated], dead)


def _blocks(network: SpikingNetwork, images: Tensor, timesteps: int) -> Iterator[ModuleError]:
    """The blocks of a spike-driven network beside those of its ANN."""
    assert network.reference is not None
    names = list(network.compared)
    with outputs_of(network.reference, names) as wanted:
        network.ann(images)
    with outputs_of(network.network, names) as found:
        network.readout(images, timesteps)
    with Meter(network.network) as meter:
        network.readout(meter.show(images), timesteps, chunk=1)
    for name, module in network.compared.items():
        streams = [stream for neuron, stream in meter.streams.items() if neuron.startswith(f"{name}.")]
        steps = found[name].unflatten(0, (timesteps, -1)).cumsum(0)
        errors = [(so_far / t - wanted[name]).norm() for t, so_far in enumerate(steps, start=1)]
        neurons = sum(stream.elements for stream in streams)
        sent = torch.stack([stream.spikes.sum() for stream in streams]).sum()
        spikes, shown = _totals(sent, torch.full_like(sent, len(images)))
        yield ModuleError(name, module, _relative(errors, wanted[name]), spikes / (shown * neurons), [], 0.0)


def _relative(errors: list[Tensor], x: Tensor, least: float = TINY) -> list[float]:
    """The relative errors over all processes, from the norms of the errors, and the ANN's activation.

    An activation that is 0 for all images, as that of a router may be, has no size; ``least`` stands for it.
    """
    *lost, size = _totals(*(norm.double().square() for norm in (*errors, x.norm())))
    return [math.sqrt(square) / (math.sqrt(size) or least) for square in lost]


def _totals(*figures: Tensor) -> list[float]:
    """Scalars, over all processes."""
    found: list[float] = total(torch.stack([figure.double() for figure in figures])).tolist()
    return found
