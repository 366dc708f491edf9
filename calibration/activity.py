"""What the neurons of a network see while it computes as an ANN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..spiking import CodedNeuron, Event, analog, probing, simulate
from ..spiking.shards import largest, smallest, total
from .channels import rest, to_channels

COMMON = 0.1
"""Of the mean sensitivity, what each channel and each position is taken to have at least: they are measured on few images."""


class Activity:
    """Running statistics of one neuron's input: mean at each position, minimum of each channel, largest magnitude.

    ``mean`` has the shape of one image's input, and is there once `join` has been called.

    Args:
        name: of the neuron.
        axes: its channels.
        sensitivity: what the logits depend on it (see `sensitivities`), where that was measured.
        reach: the accumulates that one of its spikes causes.
    """

    def __init__(self, name: str, axes: tuple[int, ...], sensitivity: Tensor | None = None, reach: float = 1.0) -> None:
        self.name, self.axes, self.sensitivity, self.reach = name, axes, sensitivity, reach
        self.images = torch.zeros((), dtype=torch.int64)
        self._silences: dict[float, Tensor] = {}
        self._places: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, event: Event) -> None:
        """Take in one batch."""
        x = event.target
        summed, minimum = x.sum(0).double(), x.amin(rest(x, self.axes), keepdim=True)[0]
        scale = torch.maximum(-minimum.amin(), x.amax())
        if self.images == 0:
            self.total, self.minimum, self.scale = summed, minimum, scale
        else:
            self.total = self.total + summed
            self.minimum = torch.minimum(self.minimum, minimum)
            self.scale = torch.maximum(self.scale, scale)
        self.images += len(x)

    def join(self) -> None:
        """When all images have been seen, take in what the other processes of the group saw."""
        self.images = total(self.images)
        self.minimum, self.scale = smallest(self.minimum), largest(self.scale)
        self.mean = (total(self.total) / self.images).to(self.scale.dtype)
        del self.total  # of all neurons, twice as large as the values of an image

    @cached_property
    def bearing(self) -> Tensor:
        """The positions, with channel axes of size 1, at which some channel has a bearing on the logits.

        Without one are, for example, the patch tokens behind the last attention of a network that reads its class token.
        """
        if self.sensitivity is None:
            return torch.ones_like(self.scale, dtype=torch.bool)
        kept = [axis for axis in range(-self.sensitivity.ndim, 0) if axis in self.axes]
        return self.sensitivity.amax(kept, keepdim=True) > 0

    @cached_property
    def _borne(self) -> int:
        """How many these are."""
        return int(self.bearing.sum())

    @cached_property
    def _box(self) -> tuple[slice, ...]:
        """The smallest part of an image's input that holds all positions with a bearing; everything if there are none."""
        places = self.bearing.nonzero()
        if not len(places):
            return (slice(None),) * self.bearing.ndim
        first, last = places.amin(0).tolist(), places.amax(0).tolist()
        sizes = self.bearing.shape
        return tuple(slice(a, z + 1) if size > 1 else slice(None) for a, z, size in zip(first, last, sizes, strict=True))

    @cached_property
    def scattered(self) -> bool:
        """Whether some positions have a bearing and others in between have not, so that no part of a tensor is the former."""
        within = self.part(self.bearing)
        return bool(within.any()) and not bool(within.all())

    def part(self, x: Tensor) -> Tensor:
        """The smallest part of ``[..., *image]`` that holds all positions with a bearing, a view."""
        if self.sensitivity is None:
            return x
        index: tuple[Any, ...] = (..., *self._box)
        return x[index]

    @cached_property
    def _worth(self) -> Tensor:
        """The sensitivity, as the product of its means over channels and over positions: few images tell no more than these."""
        assert self.sensitivity is not None
        x = self.sensitivity
        positions = [axis for axis in range(-x.ndim, 0) if axis not in self.axes]
        worth, overall = torch.ones_like(x), x.mean()
        for axes in (positions, list(self.axes)):
            if axes:
                worth = worth * (x.mean(axes, keepdim=True) / overall * (1 - COMMON) + COMMON)
        return (worth * overall).clamp(min=torch.finfo(x.dtype).tiny)

    def samples(self) -> int:
        """How many values of each channel bear on the logits, in all images together."""
        shape = self.mean.shape
        channels = math.prod(shape[axis] for axis in range(-len(shape), 0) if axis in self.axes)
        positions = self._borne if self.sensitivity is not None else self.mean.numel() // channels
        return int(self.images) * positions

    def silence(self, price: float) -> Tensor:
        """The magnitude below which a spike saves less of the relative squared error of the logits than ``price`` for each
        accumulate that it causes.

        It is infinite at positions without bearing.
        """
        if self.sensitivity is None:
            return torch.zeros_like(self.scale)
        if price not in self._silences:
            worth = self._worth if price else self.scale.new_ones(())  # as free spikes are worth it at every channel
            self._silences[price] = torch.where(self.bearing, (price * self.reach / worth).sqrt(), torch.inf).to(self.scale)
        return self._silences[price]

    def channel_means(self, x: Tensor) -> Tensor:
        """``[B, ...]`` to ``[channels]``, without positions that have no bearing."""
        if self.scattered:
            return self.columns(x, self.axes).mean(1)
        image = self.part(x).mean(0, keepdim=True)  # torch is several times slower over axes between which others stay
        return image.mean(rest(x, self.axes)).flatten()

    def columns(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """``[B, ...]`` to ``[channels, samples]`` for channels along ``axes``, without positions that have no bearing."""
        part = self.part(x)
        columns = to_channels(part, axes)
        if not self.scattered:
            return columns
        if axes not in self._places:
            borne = to_channels(self.part(self.bearing).expand_as(part[:1]), axes)[0]
            self._places[axes] = borne.nonzero().flatten()
        by_image: Tensor = columns.unflatten(1, (len(part), -1))
        return by_image[..., self._places[axes]].flatten(1)


def observe(
    network: nn.Module,
    batches: Iterable[Tensor],
    neurons: dict[str, CodedNeuron],
    sensitivity: Mapping[str, Tensor],
    reached: Mapping[str, float],
) -> dict[str, Activity]:
    """The activity of each of ``neurons`` over the images of all processes, with the whole network analog.

    Raises:
        ModelError: a neuron's input is not finite; the message names the first.
    """
    activity = {
        name: Activity(name, neuron.axes, sensitivity.get(name), reached.get(name, 1.0)) for name, neuron in neurons.items()
    }
    order: dict[str, None] = {}

    def take(name: str, event: Event) -> None:
        order[name] = None
        activity[name](event)

    with probing(network, {name: partial(take, name) for name in neurons}), analog(), torch.no_grad():
        for batch in batches:
            simulate(network, batch, 1)
    for seen in activity.values():
        seen.join()
    _check_finite([activity[name] for name in order])
    return activity


def _check_finite(activity: Sequence[Activity]) -> None:
    """Refuse what neurons see, in order of execution, if it is not finite: what is wrong is before the first such neuron."""
    finite = torch.stack([seen.scale for seen in activity]).isfinite() if activity else torch.ones(0)
    for seen, is_finite in zip(activity, finite.tolist(), strict=True):
        if not is_finite:
            raise ModelError(
                f"the activations that reach {seen.name!r} are not finite (NaN or infinity)",
                "check the weights just before this module and the preprocessing of the images",
            )
