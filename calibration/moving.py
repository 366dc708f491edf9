"""Thresholds for targets that move from timestep to timestep, as those of a neuron in a wavefront do."""

from __future__ import annotations

import torch
from torch import Tensor

from ..spiking import CodedNeuron
from ..spiking.coding import CodedStep
from ..spiking.shards import total
from .code import float64

EARLY, LATE = (0.25, 0.29, 1 / 3, 0.43, 0.57, 0.75, 0.9), (0.25, 1 / 3, 0.45, 0.6)
FALLS = tuple((early, late) for early in EARLY for late in LATE if late <= early)
"""Shares by which thresholds may fall from timestep to timestep, in the first half of them and in the second. The more a target
still moves, and the fewer levels there are, the slower they have to fall, so that later spikes can take back what earlier ones
were wrong about."""

REACHES = tuple(1.5 * 2 ** (k / 3) for k in range(19))
"""What all spikes together may reach, as multiples of the deviation of the last target: 1.5 to 96."""

SAMPLES, LARGEST = 256, 32
"""Of each channel, in each batch: samples that stand for all, and the largest magnitudes, which stand for themselves."""


class Moving:
    """Finds the first threshold, and the shares by which thresholds fall, that leave the least error after the last timestep.

    It sees targets ``[T, channels, samples]``, as deviations from the prior, in any number of batches, and keeps the error that
    each pair of `REACHES` and `FALLS` has left so far, for each channel. The first batch says how large values are.

    Args:
        neuron: whose spikes they become.
        timesteps: T.
    """

    def __init__(self, neuron: CodedNeuron, timesteps: int) -> None:
        self.neuron, self.timesteps = neuron, timesteps
        self.scale: Tensor | None = None

    def update(self, targets: Tensor) -> None:
        """See a batch."""
        last, samples = targets[-1].double(), targets.shape[-1]
        if self.scale is None:
            scale = (total(last.square().sum(1)) / total(torch.full_like(last[:, 0], samples))).sqrt()
            # A channel that was silent may speak later; one that never does gets a threshold all the same.
            self.scale = torch.maximum(scale, scale.mean() / 64).clamp(min=torch.finfo(torch.float32).tiny)
            self.errors = last.new_zeros(len(FALLS), len(REACHES), len(last))
        some, largest = min(samples, SAMPLES), min(samples, LARGEST)
        spread = torch.linspace(0, samples - 1, some, device=targets.device).long().expand(len(last), -1)
        places = torch.cat([spread, last.abs().topk(largest).indices], 1)
        looked_at = targets.float().gather(2, places.expand(len(targets), -1, -1))
        weights = torch.cat([last.new_full((some,), (samples - largest) / some), last.new_ones(largest)])
        for index, fallen in enumerate(self._falls(looked_at.device)):
            self.errors[index] += self._errors(looked_at, weights, fallen[:, None, None] * self._first(fallen))

    def _falls(self, device: torch.device) -> Tensor:
        """Thresholds of all timesteps as shares of the first, ``[falls, T]``."""
        half = self.timesteps // 2
        shares = [[early ** min(t, half) * late ** max(t - half, 0) for t in range(self.timesteps)] for early, late in FALLS]
        return float64(tuple(tuple(each) for each in shares), device)

    def _first(self, fallen: Tensor) -> Tensor:
        """First thresholds ``[reaches, channels]``, where all are these shares of the first, ``[T]``."""
        assert self.scale is not None
        share = fallen.sum()
        reaches = float64(REACHES, self.scale.device)
        alphabet = self.neuron.alphabet
        assert alphabet is not None
        return reaches[:, None] * self.scale / share * (2 if alphabet.centred else 1)

    def _errors(self, targets: Tensor, weights: Tensor, thresholds: Tensor) -> Tensor:
        """Squared errors after the last timestep, a weighted sum over samples, ``[reaches, channels]``.

        Args:
            targets: ``[T, channels, samples]``.
            weights: ``[samples]``.
            thresholds: ``[T, reaches, channels]``.
        """
        neuron, decoded = self.neuron, None
        alphabet = neuron.alphabet
        assert alphabet is not None
        none = targets.new_zeros(1, 1)
        for t, (target, threshold) in enumerate(zip(targets, thresholds.float(), strict=True)):
            levels = alphabet.rounding(alphabet.ladder(threshold), alphabet.versions)
            step = CodedStep(alphabet, neuron.coding, t, levels, none, alphabet.offset(threshold), neuron.spikes_per_step)
            decoded = step(target.T.unsqueeze(1).expand(-1, len(threshold), -1), decoded)
        assert decoded is not None
        errors = (decoded - targets[-1].T.unsqueeze(1)).square()
        return (weights.float() @ errors.flatten(1)).view_as(errors[0]).double()

    def best(self) -> Tensor:
        """The thresholds of all timesteps, over all processes, ``[T, channels]`` float64."""
        errors = total(self.errors)
        falls = self._falls(errors.device)
        thresholds = torch.stack([fallen[:, None, None] * self._first(fallen) for fallen in falls], 1).flatten(1, 2)
        best = errors.flatten(0, 1).argmin(0)
        return thresholds.gather(1, best.expand(self.timesteps, 1, -1)).squeeze(1)
