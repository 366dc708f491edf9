"""The meter: every synaptic operation of a running network, counted on the values that flow through it.

An accumulate is counted where a spike arrives, and nowhere else:

* A spike that meets weights adds one of them to each output that it reaches: its exact fan-out. In a convolution with padding
  or stride that differs from position to position.
* An integer n is so many spikes.
* Two operands of spikes, as in q kᵀ of a zoo model: one accumulate where both are there.
* Two decoded values, as in q kᵀ of a converted network, change by S[t] = S[t-1] + Δq k[t-1]ᵀ + q[t] Δkᵀ: a spike of q adds a
  (shifted) value of k where that is not 0, and the other way round. A calibrated bias is no spike, so its products are
  multiplications. If the spikes need m stored versions of the other operand (ratio 2^(1/m)), each change of that one is one
  addition in each further version.
* Numbers that are no spikes are multiplied: multiply-accumulates of the whole operation, zeros included. Whether an operand
  that comes from no coded neuron is spikes is judged on all that a call gets, so an all-zero image among others' numbers counts
  as numbers, and alone it costs nothing.

Batch normalisations and other constant factors fold into weights or thresholds, and cost nothing. Additions of residual streams
and the neurons' own dynamics are not counted, neither here nor in the ANN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..spiking import Event, Hadamard, Neuron
from ..tracing.calls import FUSED, MATRIX, tensors_in
from ..tracing.decoded import Decoded, Update, fires, side_by_side
from ..tracing.signals import VIEWS, Call
from ..tracing.watch import again
from . import charges
from .kinds import spikes_of
from .ledger import Ledger
from .tally import OperationKind, Stream, Tally


class Meter(Ledger):
    """Within its context, counts what a network does with the images that it is shown (see the module).

    A network with coded neurons is run in chunks of one timestep.

        with Meter(snn.network) as meter:
            snn(meter.show(images), chunk=1)

    Args:
        network: with neurons, or without.
        observing: whether to look at the values of all operands, and note their kinds (slower).
    """

    def __init__(self, network: nn.Module, observing: bool = False) -> None:
        super().__init__(network, observing)
        self._reached: dict[tuple[str, int, int], Tensor] = {}

    def __enter__(self) -> Meter:
        super().__enter__()
        return self

    def see(self, call: Call, signals: tuple[int, ...]) -> None:
        """A function was called: count what it did, and follow the spikes among its operands."""
        operands = [operand for operand in call.operands if self.is_signal(operand)]
        if not operands:
            return
        self.forget_changed(call)
        for made in tensors_in([call.result]):
            made.still = all(getattr(operand, "still", False) for operand in operands)  # type: ignore[attr-defined]
        kind = call.kind(len(signals))
        reduces = call.name in charges.REDUCTIONS
        self._numbers[-1] += bool(kind) or reduces
        if reduces:
            self._reduce(call)
        elif call.name in FUSED:
            self._fused(call)
        elif kind in ("weighted", "product"):
            tally = self._tally(call.name, kind, call.operands[signals[0]], call.result, call.macs, len(signals))
            if kind == "weighted":
                self._weigh(call, signals[0], tally)
            else:
                self._multiply(call, signals, tally)
        elif kind in ("analog", "opaque"):
            self._transform(call)
        if call.name in VIEWS or (kind == "scale" and all(operand.numel() == 1 for operand in call.operands[1:])):
            self._follow(call)

    def done(self, module: nn.Module, output: Tensor) -> None:
        """A membrane neuron has sent something, or a rotation or a function of shifts and additions is done."""
        if isinstance(module, Neuron):
            stream = self.streams.setdefault(self.owner(), Stream(self.owner()))
            stream.elements = output.numel() // self._share(output)
            if self.observing:
                stream.saw(output)
            stream.add(self._time()[0], self._by_image(output.abs(), output))
        elif isinstance(module, Hadamard):
            self._charge(module, "rotation", output, module.additions)
        else:
            self._charge(module, "shift", output, charges.SHIFT_ACCUMULATES)

    def sent(self, name: str, event: Event, changes: list[Update]) -> None:
        """A coded neuron has sent something."""
        stream = self.streams.setdefault(name, Stream(name, copies=self._tables[name].copies))
        stream.elements = event.target.numel() // self._shown
        neuron = self._coded[name]
        thresholds = neuron.threshold
        for step, update in enumerate(changes, start=0 if neuron.synchronous else event.t):
            stream.add(self._time()[0], update.count)
            if self.observing:
                stream.saw(torch.stack(update.spikes) / thresholds[min(step, len(thresholds) - 1)])

    def _weigh(self, call: Call, position: int, tally: Tally) -> None:
        """A signal meets weights."""
        operand, (stream,) = call.operands[position], tally.operands
        tally.weights = sum(call.operands[index].numel() for index in call.factors if index != position)
        stream.elements = operand.numel() // self._share(operand)
        decoded: Decoded | None = getattr(operand, "decoded", None)
        start = self._time()[0]
        if decoded:
            self._note_decoded(stream, decoded)
            reach = self._reach(call, position)
            for update in decoded.updates:
                stream.add(start, update.count)
                uniform = reach.numel() == 1
                met = update.count * reach.flatten() if uniform else self._met(decoded.sent(update), reach, operand)[1]
                self._add(tally, met)
            return
        values = getattr(operand, "units", operand)
        if self.observing:
            stream.saw(values)
        spikes, are_spikes = spikes_of(values)
        count, met = self._met(spikes, self._reach(call, position), operand)
        stream.add(start, count)
        self._add_either(tally, are_spikes, met)

    def _add_either(self, tally: Tally, are_spikes: Tensor, met: Tensor) -> None:
        """Note ``met`` accumulates ``[T, B]`` if operands are spikes, and the multiply-accumulates of the operation if not."""
        numbers = torch.full_like(met, tally.macs * self._passes())
        self._add(tally, torch.where(are_spikes, met, 0.0), torch.where(are_spikes, 0.0, numbers))

    def _met(self, spikes: Tensor, reach: Tensor, operand: Tensor) -> tuple[Tensor, Tensor]:
        """How many spikes there are of each timestep and image, and how many outputs they reach, ``[T, B]``."""
        alike = [axis for axis, size in enumerate(reach.shape) if size == 1 and axis]
        places = (spikes.sum(alike, keepdim=True) if alike else spikes).double()
        return self._by_image(places, operand), self._by_image(places * reach, operand)

    def _reach(self, call: Call, position: int) -> Tensor:
        """The outputs that a spike at each place of one image's operand reaches; of size 1 along axes where that is the same.

        That is the gradient of their sum, with weights of one.
        """
        key = self._key()
        if key not in self._reached:
            with torch.inference_mode(False), torch.enable_grad():
                one = torch.zeros_like(call.operands[position][:1], dtype=torch.float64).requires_grad_()
                stand_ins = [one if index == position else torch.ones_like(operand, dtype=torch.float64)
                             for index, operand in enumerate(self._of_one_image(call, position))]  # fmt: skip
                (reach,) = torch.autograd.grad(again(self._call, stand_ins).sum(), one)
            for axis in range(1, reach.ndim):
                if torch.equal(reach, reach.narrow(axis, 0, 1).expand_as(reach)):
                    reach = reach.narrow(axis, 0, 1)
            self._reached[key] = reach
        return self._reached[key]

    def _of_one_image(self, call: Call, position: int) -> list[Tensor]:
        """The tensors of a call; of those that were repeated for each image, as a learned query is, the first part."""
        operand = call.operands[position]
        repeated = [call.name in MATRIX and other.ndim > 2 and other.shape[0] == len(operand) for other in call.operands]
        return [other[:1] if again else other for other, again in zip(call.operands, repeated, strict=True)]

    def _multiply(self, call: Call, positions: tuple[int, ...], tally: Tally) -> None:
        """Two signals meet."""
        pair = [call.operands[position] for position in positions]
        behind = [getattr(operand, "decoded", None) for operand in pair]
        start = self._time()[0]
        for stream, operand, decoded in zip(tally.operands, pair, behind, strict=True):
            stream.elements = operand.numel() // self._share(operand)
            if decoded:
                self._note_decoded(stream, decoded)
                for update in decoded.updates:
                    stream.add(start, update.count)
            elif self.observing:
                stream.saw(getattr(operand, "units", operand))
        if all(behind):
            return self._multiply_decoded(call, positions, tally)
        counts = [getattr(operand, "units", operand) for operand in pair]
        for stream, operand, count, decoded in zip(tally.operands, pair, counts, behind, strict=True):
            if not decoded:
                stream.add(start, self._by_image(spikes_of(count)[0], operand))
        if any(behind):
            return self._add(tally, multiplies=float(tally.macs))
        (first, first_are), (second, second_are) = map(spikes_of, counts)
        # The spikes of either add, one by one, what the other holds: those of the one that has fewer do.
        by_first = self._meetings(call, positions, first, fires(second))
        by_second = self._meetings(call, positions, fires(first), second)
        self._add_either(tally, first_are & second_are, torch.minimum(by_first, by_second))
        if any(hasattr(operand, "units") for operand in pair):
            made = dict(zip(positions, counts, strict=True))
            units = again(self._call, [made.get(index, other) for index, other in enumerate(call.operands)])
            call.result.units = torch.where(first_are & second_are, units, call.result)

    def _multiply_decoded(self, call: Call, positions: tuple[int, ...], tally: Tally) -> None:
        """Two decoded values meet: the spikes of each add what the other one holds."""
        pair = [call.operands[position] for position in positions]
        first, second = (operand.decoded for operand in pair)  # type: ignore[attr-defined]
        for one, other in side_by_side(first, second):
            sent = first.sent(one), second.sent(other)
            held = first.seen(one.terms(one.after)), second.seen(other.terms(other.before))
            self._add(tally, self._meetings(call, positions, sent[0], held[1]))
            self._add(tally, self._meetings(call, positions, held[0], sent[1]))
            for index, (mine, update, partner) in enumerate(((first, one, second), (second, other, first))):
                if partner.copies > 1:
                    # Each further version changes with each spike, and with the bias.
                    changed = update.count
                    if update.bias is not None:
                        moved = fires(update.bias).expand(update.after.shape).sum(dtype=torch.float64)
                        changed = changed + moved / self._share(pair[index]) * self._passes()
                    self._add(tally, (partner.copies - 1) * changed)
                if update.bias is not None:
                    self._add(tally, *self._of_bias(call, positions, index, mine, update))

    def _of_bias(
        self, call: Call, positions: tuple[int, ...], index: int, decoded: Decoded, update: Update
    ) -> tuple[float, float]:
        """The accumulates and multiply-accumulates of the product of a bias with the other operand, for one image.

        There are as many products as different values. Where the bias is the same along the axis of the sum, the other operand
        is summed first.
        """
        assert update.bias is not None
        tally = self.operations[self._key()]
        if call.name not in ("matmul", "bmm"):
            return 0.0, float(tally.macs)
        bias = decoded.seen(update.bias.to("meta").expand(update.after.shape))
        sizes = [1 if stride == 0 else size for size, stride in zip(bias.shape, bias.stride(), strict=True)]
        sizes[0] = len(bias) // self._share(call.operands[positions[index]])  # windows, of which each has its own products
        free = call.operands[positions[1 - index]].shape[(-2, -1)[1 - index]]
        alike = sizes[(-1, -2)[index]] == 1
        return float(alike * tally.operands[1 - index].elements), float(math.prod(sizes) * free)

    def _meetings(self, call: Call, positions: tuple[int, ...], first: Tensor, second: Tensor) -> Tensor:
        """How often a unit of ``first`` meets one of ``second`` in the products of the call, ``[T, B]``."""
        operand = call.operands[positions[0]]
        if call.name in ("matmul", "bmm", "mm", "rmatmul") and first.ndim > 1 and second.ndim > 1:
            if call.name == "rmatmul":
                first, second = second, first
            return self._by_image(first.sum(-2).double() * second.sum(-1), operand)
        both = dict(zip(positions, (first.double(), second.double()), strict=True))
        stand_ins = [both.get(index, torch.zeros_like(other)) for index, other in enumerate(call.operands)]
        return self._by_image(again(self._call, stand_ins), operand)

    def _fused(self, call: Call) -> None:
        """Attention in one call, on numbers: two products, and the softmax between them."""
        query, key, value = call.operands[:3]
        share, inner = self._share(query), query.shape[-1]
        scores, attended = query[..., 0].numel() * key.shape[-2] // share, call.result.numel() // share
        sizes = [tensor.numel() // share for tensor in (query, key, value)]
        parts: list[tuple[str, OperationKind, int, list[int], int]] = [
            ("matmul", "product", scores * inner, sizes[:2], scores),
            ("softmax", "function", 0, [scores], scores),
            ("matmul", "product", attended * key.shape[-2], [scores, sizes[2]], attended),
        ]
        for function, kind, macs, elements, outputs in parts:
            streams = [Stream(elements=count) for count in elements]
            tally = self.operations.setdefault(self._key(), Tally(self.owner(), function, kind, macs, streams, 0, outputs))
            for stream in tally.operands:
                counts = torch.full((self._time()[1], self._shown), float(stream.elements), device=query.device)
                stream.add(self._time()[0], counts)
            self._add(tally, multiplies=float(macs or charges.FUNCTION_MACS * outputs))
            self._numbers[-1] += 1

    def _reduce(self, call: Call) -> None:
        """A sum: of spikes, it is an accumulate for each; and what receives a mean reads sums."""
        operand = call.operands[0]
        if getattr(operand, "decoded", None):
            return
        values = getattr(operand, "units", operand)
        spikes, are_spikes = spikes_of(values)
        tally = self._tally(call.name, "reduction", operand, call.result, operands=1)
        tally.of_spikes = are_spikes if tally.of_spikes is None else tally.of_spikes | are_spikes
        (stream,) = tally.operands
        stream.elements = operand.numel() // self._share(operand)
        if self.observing:
            stream.saw(values)
        count = torch.where(are_spikes, self._by_image(spikes, operand), 0.0)
        stream.add(self._time()[0], count)
        self._add(tally, count)
        if call.name == "mean" or (call.name == "sum" and hasattr(operand, "units")):
            units = values.sum(*self._call.args[1:], **self._call.keywords)
            call.result.units = torch.where(are_spikes, units, call.result)

    def _transform(self, call: Call) -> None:
        """A nonlinear function."""
        operand = call.operands[0]
        compares = call.name.removesuffix("_") in charges.COMPARISONS
        tally = self._tally(call.name, "comparison" if compares else "function", operand, call.result, operands=1)
        (stream,) = tally.operands
        stream.elements = operand.numel() // self._share(operand)
        if self.observing:
            stream.saw(operand)
        present = self._by_image(fires(operand), operand)
        stream.add(self._time()[0], present)
        if compares:
            self._add(tally, torch.where(spikes_of(operand)[1], present, float(stream.elements * self._passes())))
        else:
            self._add(tally, multiplies=float(charges.FUNCTION_MACS * tally.outputs))
