"""The metrics of NeuroBench 2 by its names and rules, for figures beside those of other work.

NeuroBench (Yik et al., Nature Communications 2025) looks at what goes into linear layers and convolutions, and at what comes
out of activations. What goes in is numbers, which are multiplied, unless all of a call is 0, 1 or -1; zeros on either side cost
nothing, and neither do biases, normalisations and padding. Products of two signals, softmax and their like are not seen.

A membrane neuron sends what it puts out. A coded neuron puts out what its receivers have added up so far, and sends spikes:
these are counted. Thresholds fold into weights, so binary and ternary spikes are accumulates (of a burst, one each), and those
of several levels are multiply-accumulates.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, Neuron, SpikingNetwork, evaluating
from ..spiking.shards import total
from ..tracing.decoded import Decoded, fires
from ..tracing.signals import VIEWS, Call
from ..tracing.watch import Watch, again
from .batches import Parts, labelled
from .cost import Costs
from .evaluation import Evaluation
from .outputs import output_of

CONNECTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
FUNCTIONS = {"linear", "conv1d", "conv2d", "conv3d"}
ACTIVATIONS = (Neuron, nn.ReLU, nn.Sigmoid)

SUMS = MACS, ACS, DENSE, PRESENT, VALUES = range(5)
"""What is summed up: operations of connections; the values of activations that are not 0, and all of them."""


class NeuroBench:
    """Counts what NeuroBench counts, in a run of its own, on the batches that a network is scored on.

        bench = NeuroBench(network)
        result = evaluate(network, bench.counted(loader))
        bench.metrics(result)

    Args:
        network: a converted network, or one of the zoo.
        timesteps: T of the run, the last that is reported; the network's unless given.
    """

    def __init__(self, network: SpikingNetwork, timesteps: int | None = None) -> None:
        self.network = network
        self.timesteps = timesteps
        self._connections = _Connections(network.network, network.synchronous)

    def counted(self, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, see `vit2snn.measure.evaluate`, each counted when it is asked for.

        Raises:
            DataError: a batch is not of images and labels.
        """
        parts = Parts()
        for batch in batches:
            found = labelled(batch, output_of(self.network))
            if found is not None:
                parts.run(self._count, *found)
                yield found

    def metrics(self, result: Evaluation) -> dict[str, Any]:
        """The document of ``vit2snn evaluate --neurobench``.

        ``neurobench`` has the figures by NeuroBench's names: bytes, shares, and operations for an image in all timesteps.
        ``ClassificationAccuracy`` is null where no classes are scored. ``vit2snn`` has the counts of `Costs` of the same run
        and, by kind of operation, those of what NeuroBench does not see.

        Args:
            result: of the same batches. All processes of a group ask for the metrics.
        """
        network, last = self.network.network, result.points[-1]
        stored = [*network.parameters(), *network.buffers()]
        return {
            "neurobench": {
                "Footprint": sum(tensor.numel() * tensor.element_size() for tensor in stored),
                "ConnectionSparsity": _connection_sparsity(network),
                "ClassificationAccuracy": last.top1 / 100 if result.output == "classes" and last.top1 is not None else None,
                **self._connections.metrics(),
            },
            "vit2snn": {"images": result.images, "timesteps": last.timestep, **_beside(result.costs, network, last.timestep)},
        }

    @torch.inference_mode()
    def _count(self, images: Tensor, labels: Tensor) -> None:
        x = images.to(next(self.network.network.parameters()))
        timesteps = self.timesteps or self.network.timesteps or len(x)
        x = x[:timesteps] if x.ndim == 5 else x
        coded = any(isinstance(module, CodedNeuron) for module in self.network.network.modules())
        with evaluating(self.network), self._connections:
            self.network.readout(self._connections.begin(x, timesteps), timesteps, 1 if coded else None)
        self._connections.finish()


class _Connections(Watch):
    """What goes into the connections of a network, and comes out of its activations."""

    def __init__(self, network: nn.Module, synchronous: bool) -> None:
        super().__init__(network)
        self.synchronous = synchronous
        self.timesteps = self.images = 0
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64)
        self._dense: dict[tuple[str, torch.Size], Tensor] = {}

    def begin(self, x: Tensor, timesteps: int) -> Tensor:
        """Images or frames, to be run for so many timesteps."""
        self.timesteps = timesteps
        self._now = torch.zeros(len(SUMS), dtype=torch.float64, device=x.device)
        return self.show(x)

    def finish(self) -> None:
        """The run has ended, so its sums count."""
        self.images += self._shown
        self.sums += self._now.cpu()

    def metrics(self) -> dict[str, Any]:
        """The figures over all processes."""
        images = int(total(torch.tensor(self.images)))
        sums = total(self.sums).tolist()
        names = {"Effective_MACs": MACS, "Effective_ACs": ACS, "Dense": DENSE}
        return {
            "ActivationSparsity": 1 - sums[PRESENT] / sums[VALUES] if sums[VALUES] else 0.0,
            "SynapticOperations": {name: sums[index] / images for name, index in names.items()},
        }

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        """A connection is made: count the weights that are not 0 and meet something that is not."""
        self.forget_changed(call)
        operands = [operand for operand in call.operands if self.is_signal(operand)]
        if operands and isinstance(call.result, Tensor):
            call.result.still = all(getattr(operand, "still", False) for operand in operands)  # type: ignore[attr-defined]
        if operands and call.name in VIEWS:
            self._follow(call)
        if self.stack and isinstance(self.stack[-1], CONNECTIONS) and call.name in FUNCTIONS:
            self._connect(*call.operands)

    def _connect(self, x: Tensor, weight: Tensor, *bias: Tensor) -> None:
        for there, are_spikes in self._sent(x):
            met, key = self._met(there, fires(weight), bias), (self.owner(), there.shape)
            if key not in self._dense:
                self._dense[key] = self._met(torch.ones_like(there), torch.ones_like(weight), bias)
            self._add(x, MACS, torch.where(are_spikes, 0.0, met), torch.where(are_spikes, met, 0.0), self._dense[key])

    def _met(self, x: Tensor, weight: Tensor, bias: Sequence[Tensor]) -> Tensor:
        """How often one of ``x`` meets one of ``weight`` in the call that is being made."""
        zeros = [torch.zeros_like(values) for values in bias]
        result: Tensor = again(self._call, [tensor.float() for tensor in (x, weight, *zeros)])
        return result.sum(dtype=torch.float64)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """An activation returns: count what is not 0."""
        super().leave(module, inputs, output)
        if isinstance(module, ACTIVATIONS):
            with torch._C.DisableTorchFunction():
                for there, _ in self._sent(output):
                    present = fires(there).sum(dtype=torch.float64)
                    self._add(output, PRESENT, present, torch.full_like(present, there.numel()))

    def _sent(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """How often something is sent to each place of ``x``, and whether that is spikes, a scalar."""
        decoded: Decoded | None = getattr(x, "decoded", None)
        if decoded:
            alphabet = self._coded[decoded.neuron].alphabet
            assert alphabet is not None
            one_height = torch.tensor(alphabet.levels == 1, device=x.device)
            return [(decoded.sent(update), one_height) for update in decoded.updates]
        return [(fires(x), ((x == 0) | (x.abs() == 1)).all())]

    def _add(self, x: Tensor, first: int, *counts: Tensor) -> None:
        """Note counts, from the ``first`` sum on; what is computed once for all timesteps counts in each."""
        start, timesteps = self._time()
        if self.synchronous and start + timesteps < self.timesteps:
            return  # the last pass of such a network holds all timesteps
        self._now[first : first + len(counts)] += torch.stack(counts) * (timesteps if self._is_still(x) else 1)


def _connection_sparsity(network: nn.Module) -> float:
    """The share of weights that are 0, to four digits as NeuroBench has it."""
    weights = [module.weight for module in network.modules() if isinstance(module, CONNECTIONS)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return round(zeros / max(sum(weight.numel() for weight in weights), 1), 4)


def _beside(costs: Costs, network: nn.Module, timesteps: int) -> dict[str, Any]:
    """Accumulates and multiply-accumulates of a run, of all operations and of those that are not of connections."""
    span = slice(timesteps - 1, timesteps) if costs.synchronous else slice(timesteps)
    every, unseen = Counter[str](), defaultdict[str, Counter[str]](Counter)
    for operation in costs.operations:
        spent = {"accumulates": sum(operation.accumulates[span]), "multiplies": sum(operation.multiplies[span])}
        every.update(spent)
        if not isinstance(network.get_submodule(operation.module), CONNECTIONS):
            unseen[operation.kind].update(spent)
    return {**every, "unseen": unseen}
