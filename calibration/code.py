"""What a receiver decodes of constant values, and how far off it is: what a search for thresholds has to know of a neuron."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from ..spiking import Alphabet, CodedNeuron, Coding
from ..spiking.coding import CodedStep
from .histogram import BINS, edges

POINTS = 5  # in each bin of a histogram, because the decoded values may lie closer together than its edges


@dataclass(frozen=True)
class Code:
    """A neuron's way of coding, for ``timesteps`` timesteps, of which each has ``fall`` times the thresholds of that before."""

    alphabet: Alphabet
    coding: Coding
    spikes_per_step: int
    timesteps: int
    fall: float = 1.0

    @classmethod
    def of(cls, neuron: CodedNeuron, timesteps: int) -> Code:
        """The code of a neuron."""
        assert neuron.alphabet is not None
        return cls(neuron.alphabet, neuron.coding, neuron.spikes_per_step, timesteps)

    def decode(self, values: Tensor, thresholds: Tensor, ratio: float | None = None) -> Tensor:
        """What becomes of constant ``values``; first thresholds broadcast against them, and ρ is the alphabet's by default."""
        values, thresholds = torch.broadcast_tensors(values, thresholds)
        decoded = prior = torch.zeros_like(values)
        for t in range(self.timesteps):
            falling = thresholds * self.fall**t
            ladder = self.alphabet.ladder(falling, None if ratio is None else torch.full_like(thresholds, ratio))
            levels = self.alphabet.rounding(ladder)
            step = CodedStep(self.alphabet, self.coding, t, levels, prior, None, self.spikes_per_step)
            decoded, _ = step.reference(values, decoded)
        return decoded


@cache
def points(device: torch.device) -> Tensor:
    """``[BINS, POINTS]``: magnitudes spread over each bin of a histogram; those of the first bin, whose edge is 0, are 0."""
    edge = edges(device)
    within = (torch.arange(POINTS, dtype=torch.float64, device=device) + 0.5) / POINTS
    spread = edge[:-1, None] + within * edge.diff()[:, None]
    spread[0] = 0.0
    return spread


@cache
def thresholds(device: torch.device) -> Tensor:
    """``[2 * BINS]``: the thresholds worth trying are lower edges of bins (at even places) and the middles of bins."""
    edge = edges(device)
    return torch.stack([edge[:-1], (edge[:-1] + edge[1:]) / 2], 1).flatten().clamp(min=edge[1] / 2)


@lru_cache(maxsize=16)
def squared_errors(code: Code, ratio: float, device: torch.device) -> Tensor:
    """``[2 * BINS, BINS, POINTS]``: of `points` decoded with each of `thresholds`. It depends on no data, and so is kept."""
    values = points(device).float()
    return (code.decode(values, thresholds(device).float()[:, None, None], ratio) - values).square()


@lru_cache(maxsize=64)
def mean_errors(code: Code, ratios: tuple[float, ...], device: torch.device) -> Tensor:
    """``[2 * BINS, ratios, BINS]``: the means over the points of each bin."""
    return torch.stack([squared_errors(code, ratio, device).mean(2) for ratio in ratios], 1)


@lru_cache(maxsize=16)
def decoded_alike(code: Code, device: torch.device) -> Tensor:
    """``[BINS, BINS]``: bins with the same number in a row decode alike, with the upper edge of the row's bin as threshold.

    Bins above the threshold have none, that is 0.
    """
    edge = edges(device)
    centre = (edge[1:] + edge[:-1]) / 2
    centre[0] = 0.0
    alike = torch.zeros(BINS, BINS, dtype=torch.int64, device=device)
    for row, threshold in enumerate(edge[1:]):
        alike[row, : row + 1] = code.decode(centre[: row + 1], threshold).unique(return_inverse=True)[1]
    return alike


@cache
def float64(values: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Constants, in the shape of the tuples."""
    return torch.tensor(values, dtype=torch.float64, device=device)
