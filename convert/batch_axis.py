"""Whether signals keep the images apart: along the first axis, outermost."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..spiking import CodedNeuron, Event, analog, neurons, probing, simulate

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
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(image.shape, generator=generator).to(image) * image.std() + image.mean()
    alone = _seen(network, image), _seen(network, other)
    for name, both in _seen(network, torch.cat([image, other])).items():
        expected = torch.cat([targets[name] for targets in alone])
        if not torch.isfinite(expected).all():
            return  # calibration tells where that comes from
        if both.shape != expected.shape or (both - expected).abs().amax() > TOLERANCE * expected.abs().amax():
            module = name.rpartition(".")[0]
            raise ModelError(
                f"what module {module!r} computes of two images together is not what it computes of each: neurons need the "
                "images outermost along the first axis, and nothing that passes from image to image",
                f"write a handler for it, or leave it analog: recipe field ignore = {[module]!r}",
            )


def _seen(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each coded neuron sees, ``[B, ...]``."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, event: Event) -> None:
        seen[name] = event.target

    names = [name for name, neuron in neurons(network) if isinstance(neuron, CodedNeuron)]
    with probing(network, {name: partial(keep, name) for name in names}), analog():
        simulate(network, images, 1)
    return seen
