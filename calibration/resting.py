"""Where neurons rest whose spikes have a price: at the mean of what they then say nothing of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..spiking import Event, analog, probing, simulate
from ..spiking.shards import total
from .activity import Activity

ROUNDS = 4
KNOWN = 16  # silent images from which a position's own mean is as good as that of its channel


@torch.no_grad()
def resting(network: nn.Module, batches: Iterable[Tensor], activity: Mapping[str, Activity], price: float) -> dict[str, Tensor]:
    """The values from which the inputs of neurons are told apart, by name, of the shape of one image's input.

    A silent neuron stands for its prior, so the best prior is the mean of the inputs that are too close to it to be worth a
    spike (the centroid of the zero bin: Lloyd, Least squares quantization in PCM, 1982). Of a skewed input, as behind a GELU or
    a softmax, that is nearer to where most values are than the mean of all of them. It is found in some rounds, each a pass
    over the images with the whole network analog.

    Args:
        network: in evaluation mode.
        batches: images ``[B, C, H, W]``.
        activity: of each neuron, by name, on all images.
        price: of a spike, see `Activity.silence`.
    """
    priors = {name: seen.mean for name, seen in activity.items()}
    for _ in range(ROUNDS):
        sums: dict[str, Tensor] = {}

        def see(name: str, event: Event, sums: dict[str, Tensor] = sums) -> None:
            away = event.target - priors[name]
            silent = away.abs() < activity[name].silence(price)
            found = torch.stack([torch.where(silent, away, 0.0).sum(0, dtype=torch.float64), silent.sum(0)])
            sums[name] = sums[name] + found if name in sums else found

        with probing(network, {name: partial(see, name) for name in activity}), analog():
            for batch in batches:
                simulate(network, batch, 1)
        for name, found in sums.items():
            away, silent = total(found)
            positions = [axis for axis in range(-away.ndim, 0) if axis not in activity[name].axes]
            alike = away.sum(positions, keepdim=True) / silent.sum(positions, keepdim=True).clamp(min=1) if positions else 0.0
            priors[name] = priors[name] + ((away + KNOWN * alike) / (silent + KNOWN)).to(priors[name])
    return priors
