"""Calibration of a neuron while the spiking network runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, Ladder, Neuron, Run
from ..spiking.coding import CodedStep
from ..spiking.neuron import begins_later, seen_later
from ..spiking.process import release_surplus
from ..spiking.shards import total
from .activity import Activity
from .channels import from_channels
from .innovations import show
from .moving import Moving
from .observers import Observer
from .rule import ThresholdRule, threshold_axes


class ClosedLoop(Neuron):
    """Stands in for a coded neuron during calibration: at each step it sets its levels and bias first, then fires.

    The bias makes up for what the decoded value lacks to the ANN's on the same images, in the mean of each channel. So every
    batch is shown twice: without an aim the neuron passes its input through, as the ANN does, and takes its mean as the aim.

    A layer-synchronous neuron goes through all its timesteps when it is shown the images once. Where its thresholds are
    scheduled beforehand it has no bias: what a step has added could be more than the later ones can take back. A neuron that
    lags sees all timesteps of a run at once, and sets itself for the last one.

    Levels and biases are those of all processes of the group, which go through their batches in step.
    """

    def __init__(self, neuron: CodedNeuron, seen: Activity, rule: ThresholdRule, bias: bool, timesteps: int) -> None:
        super().__init__()
        self.neuron, self.seen, self.rule, self.timesteps = neuron, seen, rule, timesteps
        self.scheduled = rule.is_scheduled(neuron)
        self.moving = Moving(neuron, timesteps) if neuron.lag else None
        self.has_bias = bias and not self.scheduled and not neuron.lag
        self.observers: list[Observer] = []
        self.levels: list[Ladder] = []
        self.lacks: list[Tensor] = []  # [channels], summed over images
        self.images: list[Tensor] = []  # their number
        self.aim: Tensor | None = None

    def unfold(self, x: Tensor, run: Run) -> Tensor:
        """As the neuron does."""
        return self.neuron.unfold(x, run)

    def forward(self, x: Tensor) -> Tensor:
        """As the neuron does, unseen by torch function modes."""
        with torch._C.DisableTorchFunction():
            output = super().forward(x)
            release_surplus()
            return begins_later(output, x, self.neuron.lag) if self.neuron.lag else output

    def advance(self, frames: Tensor, state: Tensor | None, run: Run) -> tuple[Tensor, Tensor | None]:
        """The timesteps of a chunk; see `Neuron.advance`."""
        if self.moving and self.aim is not None:
            return self._advance_moving(seen_later(frames, self.neuron.lag, run), self.moving)
        if not self.neuron.synchronous or self.aim is None:
            return super().advance(frames, state, run)
        (x,) = frames
        for t in range(self.timesteps):
            decoded, state = self.step(t, x, state)
        return decoded.unsqueeze(0), None

    def _advance_moving(self, frames: Tensor, moving: Moving) -> tuple[Tensor, None]:
        neuron, prior = self.neuron, self.neuron.prior
        axes = threshold_axes(neuron, self.seen)
        moving.update(torch.stack([self.seen.columns(x - prior, axes) for x in frames]))
        self.levels = self.rule.of_moving(neuron, moving, self.seen)
        decoded: list[Tensor] = []
        for t, x in enumerate(frames):
            decoded.append(self._coded_step(t)(x, decoded[-1] if t else None))
        return torch.stack(decoded), None

    def _coded_step(self, t: int) -> CodedStep:
        """Timestep t with its levels."""
        neuron, levels = self.neuron, self.levels[t]
        alphabet = neuron.alphabet
        assert alphabet is not None
        constants = alphabet.rounding(levels, alphabet.versions), neuron.prior, alphabet.offset(levels.threshold)
        return CodedStep(alphabet, neuron.coding, t, *constants, neuron.spikes_per_step)

    def step(self, t: int, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """As the neuron's own step, with the tables of step ``t`` set on the way."""
        neuron = self.neuron
        if self.aim is None:
            self.aim = self.seen.channel_means(x)
            return x, x
        decoded = (self._refined(t, x, state) if self.rule.closed_loop else neuron.coded_step(t))(x, state)
        if self.has_bias:
            decoded += from_channels(self._note_lack(t, decoded, self.aim), x, neuron.axes)
        return decoded, decoded

    def _refined(self, t: int, x: Tensor, before: Tensor | None) -> CodedStep:
        """Timestep t with the levels that suit its innovations on all images so far, these included."""
        neuron = self.neuron
        if not self.scheduled:
            before_this = self.levels[t - 1] if t else None
            levels = self.rule.levels(neuron, self._shown(t, 1, x, before), self.seen, t, before_this)
            self.levels[t:] = [levels, *self.levels[t + 1 :]]
        elif not t:  # when those of the later timesteps are known too
            self.levels = self.rule.schedule(neuron, self._shown(0, self.timesteps, x, None), self.seen, self.timesteps)
        return self._coded_step(t)

    def _shown(self, t: int, timesteps: int, x: Tensor, before: Tensor | None) -> Observer:
        """The observer of timestep t, whose levels serve ``timesteps``, when it has seen these innovations too."""
        if t == len(self.observers):
            self.observers.append(self.rule.watch(self.neuron, timesteps))
        show(self.observers[t], self.neuron, self.seen, t, x, before)
        return self.observers[t]

    def _note_lack(self, t: int, decoded: Tensor, aim: Tensor) -> Tensor:
        """What the decoded value of step t lacks to the ANN's mean, by channel, over all images so far, of all processes."""
        lack = (aim - self.seen.channel_means(decoded)) * len(decoded)
        if t == len(self.lacks):
            self.lacks.append(torch.zeros_like(lack))
            self.images.append(torch.zeros((), dtype=torch.int64, device=lack.device))
        self.lacks[t] = self.lacks[t] + lack
        self.images[t] += len(decoded)
        return self._lack(t)

    def _lack(self, t: int) -> Tensor:
        return total(self.lacks[t]) / total(self.images[t])

    def finish(self) -> None:
        """Hand the tables over to the neuron."""
        if self.levels:
            self.neuron.threshold, self.neuron.ratio, self.neuron.silence = map(torch.stack, zip(*self.levels, strict=True))
            alphabet = self.neuron.alphabet
            offset = alphabet.offset(self.neuron.threshold) if alphabet else None
            self.neuron.bias = self.neuron.bias if offset is None else offset
        if self.lacks:
            like = self.seen.mean.unsqueeze(0)
            self.neuron.bias = torch.stack(
                [
                    from_channels(self._lack(t) / self.neuron.coding.coefficients(t)[1], like, self.neuron.axes)
                    for t in range(len(self.lacks))
                ]
            )


@contextmanager
def in_place_of_neurons(network: nn.Module, loops: dict[str, ClosedLoop]) -> Iterator[None]:
    """Within this context the neurons named in ``loops`` calibrate themselves."""
    try:
        for name, loop in loops.items():
            network.set_submodule(name, loop)
        yield
    finally:
        for name, loop in loops.items():
            network.set_submodule(name, loop.neuron)
