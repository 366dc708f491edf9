"""What lies behind the decoded value that a coded neuron puts out: spikes, and what they changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest

import torch
from torch import Tensor

from ..spiking import CodedNeuron, Coding, Event
from ..spiking.time import ahead

EXACT = 2.0**24
"""Beyond it, every float32 is an integer."""


def fires(x: Tensor) -> Tensor:
    """1 where ``x`` is not 0, and 0 elsewhere, in its own type: sums of it are several times faster than those of booleans."""
    return torch.ne(x, 0, out=torch.empty_like(x))


@dataclass
class Update:
    """One change of a decoded value: m[t] - r = a (m[t-1] - r) + b (s + c).

    Attributes:
        spikes: s, one tensor for each spike of a burst; these and all below but the bias have the shape of the neuron's output.
        number: how many spikes each value was sent.
        before: m before.
        after: m afterwards.
        prior: r.
        bias: c, which broadcasts against one image's part of these; None where it is 0.
        keep: a.
        gain: b.
        apart: whether the receiver holds r and m - r in sums of their own, because the latter is rescaled in every timestep
            (rate coding).
        count: the spikes of each image, ``[1, B]``.
    """

    spikes: list[Tensor]
    number: Tensor
    before: Tensor
    after: Tensor
    prior: Tensor
    bias: Tensor | None
    keep: float
    gain: float
    apart: bool
    count: Tensor

    def rest(self) -> Update:
        """The change after it in which nothing is sent."""
        nothing, count = torch.zeros_like(self.number), torch.zeros_like(self.count)
        return replace(self, spikes=[nothing], number=nothing, before=self.after, bias=None, keep=1.0, gain=1.0, count=count)

    def terms(self, value: Tensor) -> Tensor:
        """In how many sums the receiver holds each decoded value, leaving out what is 0."""
        return fires(value - self.prior) + fires(self.prior) if self.apart else fires(value)


@dataclass
class Decoded:
    """What lies behind a decoded value: what its neuron sent, and the views that were made of it since."""

    neuron: str
    copies: int
    updates: list[Update]
    moves: tuple[Callable[[Tensor], Tensor], ...] = ()

    def seen(self, x: Tensor) -> Tensor:
        """``x`` as the receiver sees it."""
        for move in self.moves:
            x = move(x)
        return x

    def ahead(self, steps: int, timesteps: int) -> Decoded:
        """What lies behind it where it is seen so many timesteps later: what was sent until then comes at once."""

        def later(x: Tensor) -> Tensor:
            return ahead(self.seen(x).unflatten(0, (timesteps, -1)), steps)

        def sooner(number: Tensor) -> Tensor:
            sent, first = self.seen(number).unflatten(0, (timesteps, -1)), min(steps, timesteps - 1) + 1
            return torch.cat([sent[:first].sum(0, keepdim=True), sent[first:], torch.zeros_like(sent[: first - 1])])

        (update,) = self.updates
        number, after = sooner(update.number), later(update.after)
        before = torch.cat([self.seen(update.before).unflatten(0, (timesteps, -1))[:1], after[:-1]])
        bias = None if update.bias is None else later(update.bias).flatten(0, 1)
        number, before, after, prior = (x.flatten(0, 1) for x in (number, before, after, later(update.prior)))
        changed = replace(update, spikes=[number], number=number, before=before, after=after, prior=prior, bias=bias)
        return Decoded(self.neuron, self.copies, [changed])

    def sent(self, update: Update) -> Tensor:
        """How many spikes each value was sent in ``update``."""
        return self.seen(update.number)


def side_by_side(first: Decoded, second: Decoded) -> Iterator[tuple[Update, Update]]:
    """The updates of two values that meet; that of fewer timesteps rests when it has ended."""
    for one, other in zip_longest(first.updates, second.updates):
        yield one or first.updates[-1].rest(), other or second.updates[-1].rest()


def number_of(spikes: Sequence[Tensor]) -> Tensor:
    """How many spikes each value was sent in a burst."""
    count = fires(spikes[0])
    for later in spikes[1:]:
        count += fires(later)
    return count


@dataclass(frozen=True)
class Tables:
    """What the tables of a coded neuron hold, read once: whoever reads a value in a run has to wait for the device.

    Attributes:
        copies: see `copies_for`.
        biased: of each timestep, whether there is a bias that is not 0.
        has_prior: whether the prior is not 0.
    """

    copies: int
    biased: tuple[bool, ...]
    has_prior: bool

    @classmethod
    def of(cls, neuron: CodedNeuron) -> Tables:
        """Those of a neuron that is calibrated."""
        biased = neuron.bias.flatten(1).any(1).tolist() if len(neuron.bias) else []
        return cls(copies_for(neuron), tuple(biased), bool(neuron.prior.any()))


def copies_for(neuron: CodedNeuron) -> int:
    """The stored versions of a weight that a neuron's receivers need, so that all else is a shift.

    That is m for a ratio of 2^(1/m), the union of these for several ratios, and one for each level where a ratio is another.
    """
    assert neuron.alphabet is not None
    if neuron.alphabet.levels == 1:
        return 1
    ratios = neuron.ratio if len(neuron.ratio) else torch.tensor([neuron.alphabet.ratio])
    steps = 1 / ratios.double().log2()
    whole = steps.round()
    if bool(((steps - whole).abs() < 1e-3).all()):
        return len({Fraction(k % int(m), int(m)) for m in whole.unique() for k in range(neuron.alphabet.levels)})
    return neuron.alphabet.levels


def updates(neuron: CodedNeuron, tables: Tables, event: Event, by_image: Callable[[Tensor], Tensor]) -> Iterator[Update]:
    """The changes of a decoded value that an event consists of: one, or those of all steps of a layer-synchronous neuron.

    ``tables`` are the neuron's, and ``by_image`` sums up over all of an image.
    """
    steps = neuron.steps_by(event.t)
    each = len(event.spikes) // len(steps)
    before, prior = event.before, neuron.prior.expand(event.target.shape)
    apart = neuron.coding is Coding.RATE and tables.has_prior
    for index, t in enumerate(steps):
        spikes = event.spikes[index * each : (index + 1) * each]
        bias = neuron.bias_at(t) if len(tables.biased) and tables.biased[min(t, len(tables.biased) - 1)] else None
        after = event.decoded
        if neuron.synchronous:
            after = neuron.coding.integrate(t, neuron.coding.held(t, before, prior), spikes, bias)
        keep, gain = neuron.coding.coefficients(t)
        number = number_of(spikes)
        yield Update(spikes, number, before, after, prior, bias, keep, gain, apart, by_image(number))
        before = after


def folded(changes: Sequence[Update], shape: torch.Size) -> Update:
    """The updates of all timesteps of a run as one, with time in the batch, of a neuron with outputs of this shape."""
    joined = (torch.cat([getattr(each, name) for each in changes]) for name in ("number", "before", "after", "prior"))
    spikes = [torch.cat(burst) for burst in zip(*(each.spikes for each in changes), strict=True)]
    biases = [each.bias for each in changes if each.bias is not None]
    bias = None
    if biases:  # an offset, which all timesteps have
        rows, image = shape[0] // len(changes), shape[1:]
        parts = [each.reshape(each.shape[each.ndim - len(image) :]) for each in biases]
        bias = torch.cat([part.expand(rows, *part.shape) for part in parts])
    count = torch.stack([each.count for each in changes]).sum(0)
    number, before, after, prior = joined
    return replace(changes[0], spikes=spikes, number=number, before=before, after=after, prior=prior, bias=bias, count=count)


def shaped(update: Update, shape: torch.Size) -> Update:
    """An update in the shape of the neuron's output, into which the parts of an image are folded."""
    folded = {name: getattr(update, name).reshape(shape) for name in ("number", "before", "after", "prior")}
    return replace(update, spikes=[spikes.reshape(shape) for spikes in update.spikes], **folded)
