"""What the neurons of a network see while it computes as an ANN."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..spiking import Clock, CodedNeuron, Event, analog, probing, simulate
from ..spiking.shards import largest, smallest, total
from .channels import from_channels, to_channels


class Activity:
    """Running statistics of one neuron's input: mean at each position, minimum of each channel, largest magnitude."""

    def __init__(self, name: str, axes: tuple[int, ...]) -> None:
        self.name, self.axes = name, axes
        self.images = torch.zeros((), dtype=torch.int64)

    def __call__(self, event: Event) -> None:
        """Take in one batch.

        Raises:
            ModelError: it has values that are not finite.
        """
        x = event.target
        summed, minimum = x.sum(0, dtype=torch.float64), from_channels(to_channels(x, self.axes).amin(1), x, self.axes)
        scale = x.abs().amax()
        if not torch.isfinite(scale):
            raise ModelError(
                f"the activations that reach {self.name!r} are not finite (NaN or infinity)",
                "check the weights just before this module and the preprocessing of the images",
            )
        if self.images == 0:
            self.total, self.minimum, self.scale = summed, minimum, scale
        else:
            self.total = self.total + summed
            self.minimum = torch.minimum(self.minimum, minimum)
            self.scale = torch.maximum(self.scale, scale)
        self.images += len(x)

    def join(self) -> None:
        """Take in what the other processes of the group saw."""
        self.total, self.images = total(self.total), total(self.images)
        self.minimum, self.scale = smallest(self.minimum), largest(self.scale)

    @property
    def mean(self) -> Tensor:
        """Mean at each position, the shape of one image's input."""
        return (self.total / self.images).to(self.scale.dtype)


def observe(
    network: nn.Module, clock: Clock, batches: Iterable[Tensor], neurons: dict[str, CodedNeuron]
) -> dict[str, Activity]:
    """The activity of each of ``neurons`` over the images of all processes, with the whole network analog."""
    activity = {name: Activity(name, neuron.axes) for name, neuron in neurons.items()}
    with probing(network, activity), analog(network), torch.no_grad():
        for batch in batches:
            simulate(network, clock, batch, 1)
    for seen in activity.values():
        seen.join()
    return activity
