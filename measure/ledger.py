"""What was counted in a run so far: of every operation and of every neuron, by timestep."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..spiking.shards import largest, total
from ..tracing.calls import tensors_in
from ..tracing.decoded import Decoded
from ..tracing.watch import Watch
from .tally import OperationKind, Stream, Tally, padded


class Ledger(Watch):
    """A watch that keeps counts; `Meter` says what is counted.

    Args:
        network: with neurons, or without.
        observing: whether to look at the values of all operands, and note their kinds (slower).

    Attributes:
        operations: by module, call of the module in a pass, and number in that call; in order of execution.
        streams: what the neurons sent, by name.
        images: how many were shown.
        lags: whether neurons begin one after another, and compute all their timesteps in that of the run.
    """

    def __init__(self, network: nn.Module, observing: bool = False) -> None:
        super().__init__(network)
        self.observing = observing
        self.lags = any(neuron.lag for neuron in self._coded.values())
        self.images = 0
        self.streams: dict[str, Stream] = {}
        self.operations: dict[tuple[str, int, int], Tally] = {}

    @property
    def tallies(self) -> list[Tally]:
        """The operations, in order of execution; sums of numbers are none."""
        return [tally for tally in self.operations.values() if tally.of_spikes is None or tally.of_spikes]

    def show(self, images: Tensor, batch: int | None = None) -> Tensor:
        """See `Watch.show`; what was counted before stays."""
        images = super().show(images, batch)
        self.images += self._shown
        self._spent = torch.zeros(0, self._shown, 2, dtype=torch.float64, device=images.device)
        return images

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """What is counted within this context is forgotten if it ends with an exception."""
        before = self.images, copy.deepcopy((self.streams, self.operations))
        try:
            yield
        except BaseException:
            self.images, (self.streams, self.operations) = before
            raise

    def spent(self) -> Tensor:
        """Accumulates and multiply-accumulates of each timestep for each of the images shown last, ``[T, B, 2]``."""
        return self._spent

    def over_processes(self) -> None:
        """Take in the counts of the other processes of the group."""
        self.images = int(total(torch.tensor(self.images)))
        for stream in self._all_streams():
            stream.spikes, stream.kinds = total(stream.spikes), total(stream.kinds.int()).bool()
        for tally in self.operations.values():
            tally.accumulates, tally.multiplies = total(tally.accumulates), total(tally.multiplies)
            tally.of_spikes = None if tally.of_spikes is None else largest(tally.of_spikes.int()).bool()

    def _all_streams(self) -> Iterator[Stream]:
        yield from self.streams.values()
        for tally in self.operations.values():
            yield from tally.operands

    def _note_decoded(self, stream: Stream, decoded: Decoded) -> None:
        """Of an operand, what is known of the neuron behind it."""
        stream.name, stream.copies = decoded.neuron, decoded.copies
        stream.kinds = self.streams[decoded.neuron].kinds

    def _tally(
        self, function: str, kind: OperationKind, operand: Tensor, result: Any, macs: int = 0, operands: int = 0
    ) -> Tally:
        """The tally of the operation that is being made."""
        key = self._key()
        if key not in self.operations:
            share = self._share(operand)
            outputs = sum(made.numel() for made in tensors_in([result])) // share
            streams = [Stream() for _ in range(operands)]
            self.operations[key] = Tally(key[0], function, kind, macs // share, streams, outputs=outputs)
        return self.operations[key]

    def _add(self, tally: Tally, accumulates: Tensor | float = 0.0, multiplies: Tensor | float = 0.0) -> None:
        """Note counts ``[T, B]``, or one number for each timestep and image."""
        start, timesteps = self._time()
        stop, device = start + timesteps, self._spent.device
        if len(self._spent) < stop:
            self._spent = torch.cat([self._spent, self._spent.new_zeros(stop - len(self._spent), *self._spent.shape[1:])])
        tally.accumulates, tally.multiplies = (padded(x, stop, device) for x in (tally.accumulates, tally.multiplies))
        for index, (sums, counts) in enumerate(((tally.accumulates, accumulates), (tally.multiplies, multiplies))):
            if isinstance(counts, Tensor) or counts:
                counts = counts if isinstance(counts, Tensor) else counts * self._passes()
                sums[start:stop] += counts.sum(1) if isinstance(counts, Tensor) else counts * self._shown
                self._spent[start:stop, :, index] += counts

    def _passes(self) -> int:
        """How many timesteps of what is being computed count for one: all, in a whole run."""
        return self._frames() // self._time()[1]

    def _charge(self, module: nn.Module, kind: OperationKind, output: Tensor, each: int) -> None:
        """A module that is charged so many accumulates for each value."""
        tally = self._tally(type(module).__name__, kind, output, output)
        self._add(tally, float(each * tally.outputs))
