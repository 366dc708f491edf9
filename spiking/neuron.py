"""The coded neuron: the one neuron of converted networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import gpu
from .alphabet import Alphabet, Ladder
from .coding import CodedStep, Coding, together
from .endings import ending_of
from .process import release_surplus
from .time import Neuron, Run, ahead

TABLES = ("threshold", "ratio", "silence", "bias", "prior")


class Event(NamedTuple):
    """What one neuron did in one timestep: its target, the spikes it sent, and what its receivers read afterwards and before.

    Of a layer-synchronous neuron, ``spikes`` are those of all steps that it spent on this target.
    """

    t: int
    target: Tensor
    spikes: list[Tensor]
    decoded: Tensor
    before: Tensor


Probe = Callable[[Event], None]


@dataclass
class _Prepared:
    """What a neuron does in its timesteps, as long as what it follows from is the same."""

    stamp: object
    tables: list[Tensor | None]  # whose ids are in the stamp
    steps: dict[int, CodedStep] = field(default_factory=dict)
    together: dict[range, gpu.Coded | None] = field(default_factory=dict)  # timesteps as GPUs compute them


class CodedNeuron(Neuron):
    """Stands in front of a synaptic operation and replaces its input by the decoded value of spikes (see `coding`).

    Buffers, empty until calibration sets them, with S and C broadcasting against one image's input ``[...]``:

    * ``threshold`` ``[steps, *S]``: θ of each timestep; later timesteps keep the last one;
    * ``ratio`` ``[steps, *S]``: ρ of each timestep, where it is not the alphabet's;
    * ``silence`` ``[steps, *Z]``: magnitudes below which nothing is sent, where that is more than half the smallest level;
    * ``bias`` ``[steps, *C]``: c of each timestep; later timesteps have none;
    * ``prior`` ``[...]`` or a scalar: r.

    A layer-synchronous neuron spends all its timesteps on one input before its receivers read it. So its output at timestep t
    is what t + 1 steps make of the input at t, which comes from neurons that had their steps themselves. It may take some more
    steps than others, or fewer: in a run of as many timesteps as it is calibrated for it takes as many as it has thresholds.

    A neuron that lags begins so many timesteps after those before it: its first step sees what they have after their second, if
    it lags by 1, and its last ones what they have in the end (see `vit2snn.tracing.wavefront`, which aligns other signals).

    Where ``rectified`` is set, its target is the positive part of its input: it has absorbed the ReLU in front of it.

    Args:
        alphabet: the spikes; None for an exact (analog) neuron, which passes its input through.
        coding: rate or differential.
        axes: the axes of one image's input, negative, along which thresholds and biases may vary ("channels").
        per_channel: a threshold for each channel instead of one for the tensor.
        spikes_per_step: the longest burst in one timestep.
        synchronous: the timesteps of a run that it is calibrated for, if it is layer-synchronous; 0 if it is not.
        lag: timesteps that it begins after those before it.
    """

    threshold: Tensor
    ratio: Tensor
    silence: Tensor
    bias: Tensor
    prior: Tensor

    def __init__(
        self,
        alphabet: Alphabet | None,
        coding: Coding = Coding.DIFFERENTIAL,
        axes: tuple[int, ...] = (-1,),
        per_channel: bool = False,
        spikes_per_step: int = 1,
        synchronous: int = 0,
        lag: int = 0,
    ) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.coding = coding
        self.axes = axes
        self.per_channel = per_channel
        self.spikes_per_step = spikes_per_step
        self.synchronous = synchronous
        self.lag = lag
        self.rectified = False
        self._prepared: _Prepared | None = None
        for name in TABLES:
            self.register_buffer(name, torch.empty(0))

    def make_analog(self) -> None:
        """Pass inputs through from now on; the tables are dropped."""
        self.alphabet = None
        for name in TABLES:
            setattr(self, name, getattr(self, name).new_empty(0))

    @property
    def surplus(self) -> int:
        """Timesteps that a layer-synchronous neuron takes beyond those of a run; negative if it takes fewer."""
        rows = len(self.threshold)
        return rows - self.synchronous if rows > 1 else 0  # one row serves all timesteps

    def steps_by(self, t: int) -> range:
        """Its own timesteps that go to what it sees at timestep ``t`` of a run: that one, or all if it is synchronous."""
        return range(max(t + 1 + self.surplus, 1)) if self.synchronous else range(t, t + 1)

    def ladder(self, t: int) -> Ladder:
        """The levels of timestep ``t``.

        Raises:
            RuntimeError: the neuron is not calibrated.
        """
        if not self.threshold.numel():
            raise RuntimeError("this neuron has no thresholds yet: calibrate the network before running it")
        assert self.alphabet is not None
        t = min(t, len(self.threshold) - 1)
        ratio, silence = (table[t] if len(table) else None for table in (self.ratio, self.silence))
        return self.alphabet.ladder(self.threshold[t], ratio, silence)

    def _known(self) -> _Prepared:
        """What is prepared, which is thrown away when a table changes."""
        tables = [self._buffers[name] for name in TABLES]
        versions = [(id(table), table._version if table is not None and not table.is_inference() else 0) for table in tables]
        stamp = versions, self.alphabet, self.coding, self.spikes_per_step
        prepared = self._prepared  # another thread may put another one there
        if prepared is None or prepared.stamp != stamp:
            prepared = self._prepared = _Prepared(stamp, tables)
        return prepared

    def coded_step(self, t: int) -> CodedStep:
        """What this neuron does in timestep ``t``."""
        prepared = self._known()
        if t not in prepared.steps:
            assert self.alphabet is not None
            bias = self.bias_at(t)
            with torch.inference_mode(False):  # it may be used for training later
                levels = self.alphabet.rounding(self.ladder(t))
            prepared.steps[t] = CodedStep(self.alphabet, self.coding, t, levels, self.prior, bias, self.spikes_per_step)
        return prepared.steps[t]

    def bias_at(self, t: int) -> Tensor | None:
        """c of timestep ``t``; None where it is 0."""
        if t < len(self.bias):
            return self.bias[t]
        return self.bias[-1] if len(self.bias) and self.alphabet and self.alphabet.centred else None

    def _together(self, frames: Tensor, run: Run) -> gpu.Coded | None:
        """What this neuron does in the timesteps of a chunk, if a GPU computes them all at once: nobody asks for each."""
        is_plain = not self.synchronous and self not in _probes.get() and frames.ndim > 2 and frames.numel() > 0
        if not is_plain or not gpu.can_compute(frames):
            return None
        prepared, timesteps = self._known(), range(run.elapsed, run.elapsed + len(frames))
        if timesteps not in prepared.together:
            steps = [self.coded_step(t) for t in timesteps]
            prepared.together[timesteps] = together(steps) if all(step.has_kernel for step in steps) else None
        return prepared.together[timesteps]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_prepared": None}  # copies make their own

    def range_after(self, timesteps: int) -> tuple[Tensor, Tensor]:
        """The least and the largest value that a run of so many can decode, which broadcast against one image's input."""
        assert self.alphabet is not None
        least = largest = torch.zeros_like(self.prior)
        for t in self.steps_by(timesteps - 1) if self.synchronous else range(timesteps):
            (a, b), bias = self.coding.coefficients(t), self.bias_at(t)
            reach = self.spikes_per_step * self.ladder(t).threshold
            constant = reach.new_zeros(()) if bias is None else bias
            largest = a * largest + b * (reach + constant)
            least = a * least + b * ((-reach if self.alphabet.signed else 0) + constant)
        return self.prior + least, self.prior + largest

    @property
    def is_analog(self) -> bool:
        """Whether it passes its input through: it has no alphabet, or this is called within `analog`."""
        return self.alphabet is None or is_within_analog()

    def speaking(self, x: Tensor) -> Tensor:
        """``x`` ``[B, ...]`` with zeros where the neuron never fires."""
        return torch.where(torch.isinf(self.silence[0]), 0.0, x) if len(self.silence) else x

    def unfold(self, x: Tensor, run: Run) -> Tensor:
        """See `Neuron.unfold`."""
        unfolded = super().unfold(x, run)
        return unfolded.relu() if self.rectified else unfolded

    def forward(self, x: Tensor) -> Tensor:
        """See `Neuron.forward`; torch function modes, which see every attribute that is read, do not look inside."""
        with torch._C.DisableTorchFunction():
            output = super().forward(x)
            return begins_later(output, x, self.lag) if self.lag else output

    def advance(self, frames: Tensor, state: Tensor | None, run: Run) -> tuple[Tensor, Any]:
        """The timesteps of a chunk; see `Neuron.advance`."""
        ending = ending_of(self)
        if ending is not None:
            return ending.added_to(frames), None
        if self.lag:
            frames = seen_later(frames, self.lag, run)
        if self.is_analog and self not in _probes.get():
            return frames, None
        if self.is_analog or self._is_differentiated(frames, state):
            return super().advance(frames, state, run)
        decoded, kernel = frames.new_empty(frames.shape), self._together(frames, run)
        if kernel is not None:
            last = None if run.last else torch.empty(frames.shape[1:], device=frames.device)
            kernel.respond(frames, state, decoded, last)
            return decoded, last
        for t, (x, out) in enumerate(zip(frames, decoded, strict=True), start=run.elapsed):
            run.stepping = t
            state, _ = self.step(t, x, state, out)
        run.stepping = None
        # A part of the output would keep all of it in memory.
        return decoded, state.clone() if state is not None and len(frames) > 1 and not run.last else state

    def takes_half(self, frames: Tensor, run: Run) -> bool:
        """See `Neuron.takes_half`."""
        return not torch.is_grad_enabled() and not self.is_analog and self._together(frames, run) is not None

    def _is_differentiated(self, frames: Tensor, state: Tensor | None) -> bool:
        return torch.is_grad_enabled() and (frames.requires_grad or (state is not None and state.requires_grad))

    def step(self, t: int, x: Tensor, state: Tensor | None, out: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One timestep: ``x`` is the target x[t], state and output are m[t-1] and m[t]. All ``[B, ...]``.

        A layer-synchronous neuron spends all that it has by ``t`` on ``x``, and has no state. ``out`` may take the output.
        """
        if self.is_analog:
            probe = _probes.get().get(self)
            if probe:
                probe(Event(t, x, [], x, x))
            return x, x
        decoded = self._code(t, x, None if self.synchronous else state, out)
        return decoded, None if self.synchronous else decoded

    def _code(self, t: int, x: Tensor, before: Tensor | None, out: Tensor | None) -> Tensor:
        """The decoded value at timestep ``t``."""
        sent: list[Tensor] = []
        decoded, probe = before, _probes.get().get(self)
        for number in self.steps_by(t):
            step = self.coded_step(number)
            if probe:
                decoded, spikes = step.told(x, decoded, out)
                sent += spikes
            else:
                decoded = step(x, decoded, out)
        assert decoded is not None
        if probe:
            probe(Event(t, x, sent, decoded, self.prior.expand(x.shape) if before is None else before))
        return decoded

    def extra_repr(self) -> str:
        """The alphabet and the coding, as ``print(model)`` shows them."""
        if self.alphabet is None:
            return "analog"
        return f"{self.alphabet.kind}, levels={self.alphabet.levels}, coding={self.coding.value}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The shapes of the tables are known only from calibration, so they are taken from the file.
        for name in TABLES:
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != getattr(self, name).shape:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def seen_later(frames: Tensor, lag: int, run: Run) -> Tensor:
    """``[T, B, ...]`` as a neuron that lags sees it.

    Raises:
        RuntimeError: nobody aligns other signals with what it sends.
    """
    if run.timesteps > 1 and not run.whole and not is_within_analog():
        raise RuntimeError("neurons that begin one after another are run by SpikingModel, or vit2snn.tracing.wavefront")
    return ahead(frames, lag) if run.whole else frames


def begins_later(output: Tensor, x: Tensor, lag: int) -> Tensor:
    """``output``, of a neuron that saw ``x``, with a note of how many timesteps after the image it begins."""
    output = output.view_as(output)  # a tensor of its own: the neuron may hand on what came in
    output.start = getattr(x, "start", 0) + lag  # type: ignore[attr-defined]
    return output


_analog: ContextVar[bool] = ContextVar("vit2snn_analog", default=False)
_probes: ContextVar[Mapping[CodedNeuron, Probe]] = ContextVar("vit2snn_probes", default=MappingProxyType({}))


@contextmanager
def analog() -> Iterator[None]:
    """Within this context, and this thread, coded neurons pass their input through: networks compute what their ANNs do."""
    token = _analog.set(True)
    try:
        yield
    finally:
        _analog.reset(token)


def is_within_analog() -> bool:
    """Whether this is called within `analog`."""
    return _analog.get()


@contextmanager
def probing(network: nn.Module, probes: Mapping[str, Probe]) -> Iterator[None]:
    """Within this context, and this thread, the coded neurons named in ``probes`` report every timestep to their probe."""
    found = {module: partial(_report, probes[name]) for name, module in network.named_modules() if name in probes}
    token = _probes.set({**_probes.get(), **found})
    try:
        yield
    finally:
        _probes.reset(token)


def _report(probe: Probe, event: Event) -> None:
    probe(event)
    release_surplus()
