"""The event-driven replay: a slow reference that adds weights where events arrive, and has no matrix product for spikes.

It runs the same network, but computes every synaptic operation that spikes drive as a neuromorphic machine would: the sums of
the timestep before stay, and each event adds a column of weights, or of the other operand, to the outputs that it reaches. If
its logits equal those of the simulation, then what `vit2snn.measure` counts is all that there is to do.

An event carries a value: that of the spike. Adding a column times this value is adding a stored version of the column, shifted
(see `vit2snn.tracing.decoded.copies_for`); an integer n is n events. What is constant, or is no spike, is computed as it is:
products of priors and weights, and of biases.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..spiking import CodedNeuron, SpikingNetwork, evaluating, present_run
from ..tracing.calls import ELEMENTWISE
from ..tracing.decoded import Decoded, Update, side_by_side
from . import events
from .kinds import spikes_in
from .meter import Meter

LAYERS = {"linear", "conv1d", "conv2d"}
MATRICES = {"matmul", "bmm"}
PRODUCTS = MATRICES | ELEMENTWISE
SETTINGS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


@dataclass(frozen=True)
class Replay:
    """A network run twice, in float64.

    Attributes:
        difference: of the logits of simulation and replay, ‖a - b‖ / ‖a‖ over all timesteps.
        additions: that the replay made for events.
        operations: that were replayed.
        left: operations with weights or of two signals that were computed as they are, by module.
    """

    difference: float
    additions: int
    operations: int
    left: tuple[str, ...]


@torch.no_grad()
def replay(network: SpikingNetwork, images: Tensor, timesteps: int | None = None) -> Replay:
    """Run a network event by event, beside its simulation.

    Args:
        network: a converted network, or one of the zoo; it is not changed.
        images: ``[B, C, H, W]``, or frames ``[T, B, C, H, W]``; one or two, because it takes a hundred times as long.
        timesteps: T; the network's unless given.

    Raises:
        ModelError: its layers begin one after another.
    """
    network, images = copy.deepcopy(network), images.double()
    if any(isinstance(module, CodedNeuron) and module.lag for module in network.network.modules()):
        raise ModelError("the layers of this network begin one after another, and events are replayed in shared timesteps")
    replayer = _Replayer(network.network.double())
    with evaluating(network):
        expected = network.readout(images, timesteps, chunk=1)
        with replayer:
            found = network.readout(replayer.show(images), timesteps, chunk=1)
    return Replay(
        difference=float((found - expected).norm() / expected.norm()),
        additions=sum(replayer.additions.values()),
        operations=len(replayer.additions),
        left=tuple(dict.fromkeys(replayer.left)),
    )


class _Replayer(Meter):
    """A meter within whose context synaptic operations are computed event by event; ``additions`` counts these."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.additions: Counter[tuple[str, int, int]] = Counter()
        self.left: list[str] = []
        self.sums: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}  # of operations, linear and quadratic in d

    def compute(self, call: partial[Any], name: str, operands: list[Tensor]) -> Any:
        """The result of a call of a synaptic operation on spikes; of any other, what torch makes of it."""
        signals = [index for index, operand in enumerate(operands) if self.is_signal(operand)]
        behind: list[Any] = [getattr(operand, "decoded", None) for operand in operands]
        # The operation is numbered once its result is there.
        key = self.owner(), self._use(), self._numbers[-1] + 1
        weighted = (name in LAYERS and signals == [0]) or (name in MATRICES and len(signals) == 1)
        if weighted:
            (place,) = signals
            if behind[place]:
                return self._layer_of_decoded(key, call, name, place, behind[place])
            spikes = spikes_in(getattr(operands[place], "units", operands[place]))
            if spikes is not None:
                return self._layer(key, call, name, place, operands[place])
        if name in PRODUCTS and signals == [0, 1]:
            if all(behind[:2]):
                return self._product_of_decoded(key, call, name, *behind[:2])
            if all(spikes_in(getattr(operand, "units", operand)) is not None for operand in operands):
                return self._product(key, call, name, *operands)
        if weighted or (name in LAYERS and signals) or (name in PRODUCTS and len(signals) > 1):
            self.left.append(self.owner())
        return call()

    def _layer(self, key: tuple[str, int, int], call: partial[Any], name: str, place: int, operand: Tensor) -> Tensor:
        """Spikes as they are meet weights."""
        counts, height = _counts(operand)
        constant: Tensor = _with(call, torch.zeros_like(operand), place=place)
        sums = torch.zeros_like(constant)
        for spikes in _one_by_one(counts):
            self._arrive(key, call, name, place, sums, spikes)
        return constant + sums * height

    def _layer_of_decoded(
        self, key: tuple[str, int, int], call: partial[Any], name: str, place: int, decoded: Decoded
    ) -> Tensor:
        """A decoded value meets weights: W r is constant, and W d changes."""
        zero = torch.zeros_like(decoded.seen(decoded.updates[0].prior))
        through = partial(_with, call, place=place)
        of_zero, constant = through(zero), through(decoded.seen(decoded.updates[0].prior))
        d = self._sums(key, of_zero, decoded)[0]
        for update in decoded.updates:
            change = torch.zeros_like(d)
            for spikes in update.spikes:
                self._arrive(key, call, name, place, change, decoded.seen(spikes))
            if update.bias is not None:
                change += through(decoded.seen(update.bias.expand(update.after.shape))) - of_zero
            d = update.keep * d + update.gain * change
        self.sums[key] = d, d
        result: Tensor = constant + d
        return result

    def _product(self, key: tuple[str, int, int], call: partial[Any], name: str, first: Tensor, second: Tensor) -> Tensor:
        """Two spikes meet."""
        (one, height), (other, width) = _counts(first), _counts(second)
        result = first.new_zeros(_shape(call, first, second))
        left = bool(one.abs().max() <= other.abs().max())
        for spikes in _one_by_one(one if left else other):
            self._meet(key, name, result, spikes if left else one, other if left else spikes, left)
        return result * (height * width)

    def _product_of_decoded(
        self, key: tuple[str, int, int], call: partial[Any], name: str, first: Decoded, second: Decoded
    ) -> Tensor:
        """Two decoded values meet: r rᵀ is constant, and the rest changes with every spike of either."""
        priors = first.seen(first.updates[0].prior), second.seen(second.updates[0].prior)
        constant: Tensor = _with(call, *priors)
        linear, quadratic = self._sums(key, constant, first)
        for one, other in side_by_side(first, second):
            q, (e_q, c_q), (e_k, c_k) = first.seen(one.after), _changes(first, one), _changes(second, other)
            linear, quadratic = one.keep * linear, one.keep * other.keep * quadratic
            d_q, d_k = q - priors[0], other.keep * (second.seen(other.before) - priors[1])
            if one.apart or other.apart:
                held = [(linear, priors[0], priors[1]), (quadratic, d_q, d_k)]
            else:
                held = [(quadratic, q, priors[1] + d_k)]  # with a = 1, r and d are in one sum
            for total, held_q, held_k in held:
                for spikes in e_q:
                    self._meet(key, name, total, spikes, held_k, left=True)
                for spikes in e_k:
                    self._meet(key, name, total, held_q, spikes, left=False)
                total += _with(call, c_q, held_k) + _with(call, held_q, c_k)
        self.sums[key] = linear, quadratic
        return constant + linear + quadratic

    def _sums(self, key: tuple[str, int, int], like: Tensor, decoded: Decoded) -> tuple[Tensor, Tensor]:
        """What is held of an operation from the timestep before."""
        run = present_run()
        fresh = run is None or run.elapsed == 0 or self._coded[decoded.neuron].synchronous
        return (torch.zeros_like(like), torch.zeros_like(like)) if fresh else self.sums[key]

    def _arrive(
        self, key: tuple[str, int, int], call: partial[Any], name: str, place: int, result: Tensor, spikes: Tensor
    ) -> None:
        """Events arrive at weights."""
        if name in MATRICES:
            first, second = (call.args[0], spikes) if place else (spikes, call.args[1])
            return self._meet(key, name, result, first, second, left=not place)
        given = dict(zip(("input", "weight", "bias", *SETTINGS), call.args, strict=False)) | call.keywords
        if name == "linear":
            self.additions[key] += events.add_linear(result, spikes, given["weight"])
        else:
            settings = [given.get(setting, default) for setting, default in SETTINGS.items()]
            convolve = events.add_convolution if name == "conv2d" else events.add_convolution_1d
            self.additions[key] += convolve(result, spikes, given["weight"], *settings)

    def _meet(self, key: tuple[str, int, int], name: str, result: Tensor, first: Tensor, second: Tensor, left: bool) -> None:
        """Events on one side arrive at what the other one holds."""
        if name in ELEMENTWISE:
            pair = (first, second) if left else (second, first)
            self.additions[key] += events.add_gated(result, *pair)
        else:
            self.additions[key] += (events.add_left if left else events.add_right)(result, first, second)


def _counts(operand: Tensor) -> tuple[Tensor, Tensor | float]:
    """Spikes as whole numbers, and what one of them is worth."""
    units = getattr(operand, "units", operand)
    spikes = spikes_in(units)
    assert spikes is not None
    counts = units.sign() * spikes
    largest = counts.abs().argmax()
    return counts, operand.flatten()[largest] / counts.flatten()[largest] if counts.any() else 1.0


def _one_by_one(x: Tensor) -> Iterator[Tensor]:
    """Integers as spikes one after another, each +1 or -1."""
    for n in range(1, int(x.abs().max()) + 1):
        yield x.sign() * (x.abs() >= n)


def _changes(decoded: Decoded, update: Update) -> tuple[list[Tensor], Tensor]:
    """What changed a value by spikes and by the bias, as the receiver sees it."""
    spikes = [update.gain * decoded.seen(spikes) for spikes in update.spikes]
    bias = torch.zeros(()) if update.bias is None else update.bias
    return spikes, update.gain * decoded.seen(bias.to(update.after).expand(update.after.shape))


def _with(call: partial[Any], *operands: Tensor, place: int = 0) -> Any:
    """The call with other operands, from the one at ``place`` on."""
    return call.func(*call.args[:place], *operands, *call.args[place + len(operands) :], **call.keywords)


def _shape(call: partial[Any], first: Tensor, second: Tensor) -> torch.Size:
    shape: torch.Size = _with(call, first.to("meta"), second.to("meta")).shape
    return shape
