"""A histogram of magnitudes over fixed logarithmic bins: constant memory, and exact merging."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..spiking.shards import total

PER_OCTAVE = 8
LOWEST, HIGHEST = (
    -24,
    16,
)  # octaves: magnitudes from 2^-24 to 2^16; smaller ones count as zero, larger ones as the largest
BINS = PER_OCTAVE * (HIGHEST - LOWEST) + 1
FIRST = (127 + LOWEST) * PER_OCTAVE - 1  # the leading bits of numbers in bin 0, see `_counted`


@cache
def edges(device: torch.device) -> Tensor:
    """``[BINS + 1]``: bin i holds magnitudes in ``edges[i] <= x < edges[i + 1]``; bin 0 starts at zero."""
    octave = torch.arange(LOWEST, HIGHEST, dtype=torch.float64).repeat_interleave(PER_OCTAVE)
    within = 1 + torch.arange(PER_OCTAVE, dtype=torch.float64).repeat(HIGHEST - LOWEST) / PER_OCTAVE
    return torch.cat([torch.zeros(1), torch.exp2(octave) * within, torch.tensor([2.0**HIGHEST])]).double().to(device)


class Histogram:
    """Counts ``[channels, BINS]`` of magnitudes; each octave is divided evenly, so a bin is at most 12.5 % wide."""

    def __init__(self) -> None:
        self.counts = torch.zeros(0, BINS, dtype=torch.int64)

    def update(self, magnitudes: Tensor) -> None:
        """Count ``[channels, samples]``, all at least 0."""
        self.add(_counted(magnitudes))

    def add(self, counts: Tensor) -> None:
        """Add counts ``[channels, BINS]``."""
        self.counts = counts if not len(self.counts) else self.counts + counts

    def merge(self, other: Histogram) -> None:
        """Add the counts of another shard of the data; equal to having seen the union."""
        if len(other.counts):
            self.add(other.counts)

    def over_processes(self) -> Histogram:
        """The histogram of what all processes of the group counted."""
        whole = Histogram()
        whole.counts = total(self.counts)
        return whole

    def percentile(self, q: float) -> Tensor:
        """The q-th percentile (0..100) of each channel, ``[channels]``, linear within a bin."""
        cumulative = self.counts.cumsum(1).double()
        rank = cumulative[:, -1:] * (q / 100)
        index = torch.searchsorted(cumulative, rank).clamp(max=BINS - 1)
        count = self.counts.gather(1, index).clamp(min=1)
        fraction = (1 - (cumulative.gather(1, index) - rank) / count).clamp(0, 1)
        edge = edges(index.device)
        return (edge[index] + fraction * (edge[index + 1] - edge[index])).squeeze(1)


def _counted(magnitudes: Tensor) -> Tensor:
    """``[channels, samples]`` to ``[channels, BINS]``.

    Eight bins to the octave are told by the exponent and the first three bits of the mantissa, which are those of one integer.
    """
    channels = len(magnitudes)
    bins = (magnitudes.float().view(torch.int32) >> 20).sub_(FIRST).clamp_(0, BINS - 1)
    bins += torch.arange(channels, dtype=bins.dtype, device=bins.device).unsqueeze(1) * BINS
    counts = torch.zeros(channels * BINS, dtype=torch.int64, device=bins.device)
    one = torch.ones((), dtype=torch.int64, device=bins.device)  # `bincount` would make the host wait for the largest value
    return counts.index_add_(0, bins.flatten(), one.expand(bins.numel())).view(channels, BINS)
