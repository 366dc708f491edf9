"""Whether signals keep the images and timesteps apart: along the first axis, outermost."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..spiking import CodedNeuron, Event, analog, neurons, probing, simulate
from ..tracing.wavefront import wave

TOLERANCE = 1e-2
"""Of the largest value. Rounding differs with the batch; values of other images differ by about as much as there is."""


@torch.no_grad()
def check_images_apart(network: nn.Module, image: Tensor) -> None:
    """Refuse a network in which some neuron sees the images of a batch mixed up.

    Neurons tell images and timesteps by their place along the first axis. An operand ``[heads * B, ...]`` has the right size
    there, and the wrong order. So two images are shown to the network with analog neurons, alone and together.

    Args:
        network: converted.
        image: ``[1, C, H, W]``; the other image is random.

    Raises:
        ModelError: what a neuron sees of two images is not what it sees of each; the message names the module.
    """
    mixed = _mixed(network, image)
    if mixed is not None and image.dtype != torch.float64:
        # A deep network can magnify rounding to as much as there is, but not that of twice the digits.
        mixed = _mixed(copy.deepcopy(network).to("cpu", torch.float64), image.to("cpu", torch.float64))
    if mixed is not None:
        raise ModelError(
            f"what module {mixed!r} computes of two images together is not what it computes of each: neurons need the "
            "images outermost along the first axis, and nothing that passes from image to image",
            f"write a handler for it, or leave it analog: recipe field ignore = {[mixed]!r}",
        )


def _mixed(network: nn.Module, image: Tensor) -> str | None:
    """The first module with a neuron that sees the images mixed up."""
    other = _another(image)
    alone = _seen(network, image), _seen(network, other)
    for name, both in _seen(network, torch.cat([image, other])).items():
        expected = torch.cat([targets[name] for targets in alone])
        if not torch.isfinite(expected).all():
            return None  # calibration tells where that comes from
        if both.shape != expected.shape or (both - expected).abs().amax() > TOLERANCE * expected.abs().amax():
            return name.rpartition(".")[0]
    return None


@torch.no_grad()
def check_times_aligned(network: nn.Module, image: Tensor) -> None:
    """Refuse a network in which signals of different timesteps meet although its neurons begin one after another.

    A run of two timesteps with exact neurons is shown one image in the first and another in the second. All that a neuron sees
    in the first timestep is of the second already, because it begins later.

    Args:
        network: converted, with neurons that lag.
        image: ``[1, C, H, W]``; the other image is random.

    Raises:
        ModelError: the network shows something else.
    """
    other = _another(image)
    with analog():
        expected, found = simulate(network, other, 1), wave(network, torch.stack([image, other]))
    if torch.isfinite(expected).all() and (found - expected).abs().amax() > TOLERANCE * expected.abs().amax():
        raise ModelError(
            "signals that begin at different times meet in this network where they cannot be aligned",
            "choose spikes.schedule 'stepwise' or 'layer-synchronous' for it",
        )


def _another(image: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(image.shape, generator=generator).to(image) * image.std() + image.mean()


def _seen(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each coded neuron sees, ``[B, ...]``."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, event: Event) -> None:
        seen[name] = event.target

    names = [name for name, neuron in neurons(network) if isinstance(neuron, CodedNeuron)]
    with probing(network, {name: partial(keep, name) for name in names}), analog():
        simulate(network, images, 1)
    return seen
