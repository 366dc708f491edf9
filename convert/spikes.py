"""How values become spikes: the neurons that a converted network gets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from ..calibration import Prior, ThresholdRule
from ..spiking import IF, NEURONS, Alphabet, Balanced, CodedNeuron, Coding
from .fields import FieldError, check_bounds, check_types
from .structures import LONGEST

MOST_LEVELS, OCTAVES = 256, 100  # of an alphabet, so that float32 holds its smallest level beside the largest
BURST = 65536  # spikes
WIDEST = 2.0**20  # head-room
SETTLING = 8
"""Timesteps of a wavefront's runs for each timestep that a layer begins after the one before it. The first spikes of longer
runs are smaller, and say less of where a value goes: with a lag of 1 the targets of 16 timesteps move more than those of 8."""


@dataclass(frozen=True)
class Coded:
    """Coded neurons in front of every synaptic operation: their spikes approach the values that the network computes.

    Args:
        coding: ``differential`` (spikes carry changes), ``rate`` (the decoded value is the mean of the spikes), or ``decaying``
            (changes, in units that fall as 1/t).
        schedule: ``stepwise`` (all layers compute each timestep, and a receiver reads values that are still being refined),
            ``wavefront`` (each layer begins a timestep after the one before, or more in runs of more than 8, so that what it
            reads has nearly settled), or
            ``layer-synchronous`` (each layer goes through all its timesteps before the next one begins).
        levels: size of the spike alphabet {θ ρ^-k, k < levels}; 1 is binary or ternary, 0 means exact (analog) neurons.
        ratio: ρ of the alphabet; with observer ``mse`` the finest that a neuron may have: it gets 2, or a finer 2^(1/m),
            whichever leaves least error.
        signed: whether spikes have both signs.
        centred: whether a binary neuron's spike stands for θ/2 and its silence for -θ/2, which needs schedule ``wavefront``.
        rotation: whether the neurons of linear layers see their input rotated by a Hadamard matrix (see
            `vit2snn.spiking.Hadamard`), which small alphabets need.
        spikes_per_step: the longest burst that a neuron may send in one timestep.
        input_spikes: the same for the first neurons, where it is more: they see the image itself, and all others inherit their
            error.
        attention_spikes: the same for the outputs of softmax, where it is more: they span the most octaves, and few fire.
        thresholds: ``closed-loop`` (for each timestep, from the spiking network itself) or ``static``.
        observer: the statistic that sets thresholds: ``percentile``, ``max``, ``mse`` or ``entropy``. With ``mse``, those of a
            layer-synchronous neuron, or of one of a wavefront, are the best ones together, for the error that its last timestep
            leaves.
        percentile: of the ``percentile`` observer, 0..100.
        headroom: thresholds are this multiple of the statistic.
        price: the relative squared error of the logits that a spike has to save for each accumulate that it causes, at the
            first timestep (at later ones less), or else it is not sent; 0 sends all.
        granularity: one threshold for each ``tensor`` or each ``channel``.
        prior: what the decoded value starts from: ``mean`` activation (with a price, of what is then not sent), channel
            ``minimum``, or ``none``.
        bias: whether each timestep has a calibrated bias for each channel. Layer-synchronous neurons with observer ``mse`` have
            none, unless spikes have a price: their thresholds suit the last timestep alone. Those of a wavefront have none.
        refit_passes: over the calibration images, in which all weights are trained through the spikes after thresholds are set
            (see `vit2snn.convert.fit_coded`); 0 leaves the weights as they are.

    Raises:
        RecipeError: a field has a value that it cannot have.
    """

    PATH: ClassVar[str] = "spikes"
    KIND: ClassVar[str] = "coded"

    coding: Literal["differential", "rate", "decaying"] = "differential"
    schedule: Literal["stepwise", "wavefront", "layer-synchronous"] = "stepwise"
    levels: int = 16
    ratio: float = 2**0.25
    signed: bool = True
    centred: bool = False
    rotation: bool = False
    spikes_per_step: int = 1
    input_spikes: int = 2
    attention_spikes: int = 1
    thresholds: Literal["closed-loop", "static"] = "closed-loop"
    observer: Literal["percentile", "max", "mse", "entropy"] = "mse"
    percentile: float = 99.9
    headroom: float = 1.25
    price: float = 0.0
    granularity: Literal["tensor", "channel"] = "tensor"
    prior: Prior = "mean"
    bias: bool = True
    refit_passes: int = 0

    def __post_init__(self) -> None:
        check_types(self, self.PATH)
        bursts = {
            name: (1 <= getattr(self, name) <= BURST, f"from 1 to {BURST}")
            for name in ("spikes_per_step", "input_spikes", "attention_spikes")
        }
        bounds = {
            "levels": (0 <= self.levels <= MOST_LEVELS, f"from 0 to {MOST_LEVELS}"),
            "ratio": (
                self.ratio > 1 and (min(self.levels, MOST_LEVELS) - 1) * math.log2(self.ratio) <= OCTAVES,
                f"above 1, and such that the levels span at most {OCTAVES} octaves",
            ),
            "percentile": (0 < self.percentile <= 100, "above 0 and at most 100"),
            "headroom": (0 < self.headroom <= WIDEST, f"above 0 and at most {WIDEST:.0f}"),
            "price": (self.price >= 0, "at least 0"),
            "refit_passes": (0 <= self.refit_passes <= LONGEST, f"from 0 to {LONGEST}"),
        }
        check_bounds(self, self.PATH, bounds | bursts)
        if self.price and self.thresholds == "static":
            raise FieldError(
                self.PATH, "price", f"is {self.price}, and thresholds are static", "choose spikes.thresholds 'closed-loop'"
            )

        if self.refit_passes and not self.levels:
            raise FieldError(
                self.PATH, "refit_passes", f"is {self.refit_passes}, and neurons of 0 levels are exact", "leave it out"
            )  # fmt: skip
        self._check_schedule()

    def _check_schedule(self) -> None:
        """Refuse what the thresholds of a wavefront cannot be found for, and what needs them."""
        if self.centred and (self.levels != 1 or self.signed or not self.staggered):
            raise FieldError(
                self.PATH, "centred",
                f"is true, with levels {self.levels}, signed {self.signed} and schedule {self.schedule!r}",
                "it needs levels 1, signed false and schedule 'wavefront'",
            )  # fmt: skip
        needed = {"coding": "differential", "thresholds": "closed-loop", "observer": "mse", "price": 0.0}
        for name, only in needed.items() if self.staggered else ():
            given = getattr(self, name)
            if given != only:
                raise FieldError(
                    self.PATH, name, f"is {given!r}, and with schedule 'wavefront' it can only be {only!r}",
                    "choose schedule 'stepwise', or leave it out",
                )  # fmt: skip

    @property
    def alphabet(self) -> Alphabet | None:
        """The spikes; None for exact neurons."""
        return Alphabet(self.levels, self.ratio, self.signed, self.centred) if self.levels else None

    @property
    def synchronous(self) -> bool:
        """Whether each layer goes through all its timesteps before the next one begins."""
        return self.schedule == "layer-synchronous"

    @property
    def staggered(self) -> bool:
        """Whether each layer begins after the one before it."""
        return self.schedule == "wavefront"

    def lag(self, timesteps: int) -> int:
        """How many timesteps each layer begins after the one before it, in runs of so many."""
        return -(-timesteps // SETTLING) if self.staggered else 0

    @property
    def rectifies(self) -> bool:
        """Whether a neuron's decoded value of something negative is 0, so that a ReLU in front of it does nothing."""
        return self.levels > 0 and not (self.signed or self.centred or self.bias or self.rotation) and self.prior == "none"

    @property
    def threshold_rule(self) -> ThresholdRule:
        """What calibration needs for thresholds."""
        return ThresholdRule(self.observer, self.percentile, self.headroom, self.thresholds == "closed-loop", self.price)

    def neuron(self, timesteps: int, axes: tuple[int, ...] = (-1,), sees_image: bool = False) -> CodedNeuron:
        """A new neuron, of a run of ``timesteps``, for an input whose channels lie along the negative ``axes``."""
        per_channel, burst = self.granularity == "channel", max(self.spikes_per_step, self.input_spikes if sees_image else 1)
        run, lag = timesteps * self.synchronous, self.lag(timesteps)
        return CodedNeuron(self.alphabet, Coding(self.coding), axes, per_channel, burst, run, lag)


KEPT = Coded(prior="none", bias=False)
"""Coded neurons beside membrane neurons."""
KEPT_PATH = "spikes.kept"


@dataclass(frozen=True)
class Membrane:
    """Membrane neurons in substitutes, where time is, and coded neurons in what keeps the ANN's function.

    Args:
        neuron: by its name in `vit2snn.spiking.NEURONS`.
        kept: the coded neurons. They are stepwise, and have neither prior, bias nor price: those are learned from the network
            with analog neurons, which beside membrane neurons is not the ANN. Nor are weights trained through their spikes
            alone.

    Raises:
        RecipeError: a field has a value that it cannot have.
    """

    PATH: ClassVar[str] = "spikes"
    KIND: ClassVar[str] = "membrane"

    neuron: Literal["lif", "if", "plif", "integer-lif", "ternary"] = "if"
    kept: Coded = KEPT

    def __post_init__(self) -> None:
        check_types(self, self.PATH)
        for name in ("schedule", "price", "prior", "bias", "refit_passes"):
            given, only = getattr(self.kept, name), getattr(KEPT, name)
            if given != only:
                raise FieldError(
                    KEPT_PATH, name, f"is {given!r}, and beside membrane neurons it can only be {only!r}",
                    "leave it out (in Python: dataclasses.replace(Membrane().kept, ...))",
                )  # fmt: skip

    def balanced(self, axes: tuple[int, ...] | None = None, function: nn.Module | None = None) -> Balanced:
        """A new neuron in front of an input whose channels lie along the negative ``axes``, or in place of a function.

        IF is reset softly and starts half-way, so that its rate is linear in its input.
        """
        with torch.device("cpu"):  # a conversion takes it to where the ANN is, whatever the default device
            neuron = IF(v_reset=None, v_start=0.5) if self.neuron == "if" else NEURONS[self.neuron]()
            return Balanced(neuron, axes, function)
