"""How much of the logits hangs on each neuron's input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ..spiking import CodedNeuron, Event, analog, probing, simulate
from ..spiking.shards import total

AT_ONCE = 4  # images: the activations of all layers are in memory


def sensitivities(
    network: nn.Module, batches: Iterable[Tensor], neurons: dict[str, CodedNeuron], images: int, draws: int
) -> dict[str, Tensor]:
    """E‖∂z/∂x‖² / E‖z‖² at each position of each neuron's input x, where z are the logits of the ANN.

    Independent noise of variance σ² at one position adds this times σ² to the relative squared error of the logits. The norm
    over logits is estimated from ``draws`` random combinations of them (E (v·J)² = ‖J‖² for normal v), the same for all images.

    Args:
        network: in evaluation mode.
        batches: images ``[B, C, H, W]``.
        neurons: by name.
        images: how many of the first images are used, in each process of a group.
        draws: backward passes for each image.

    Returns:
        By name, the shape of one image's input; exactly 0 where no logit depends on it for any of the images. A neuron inside a
        custom autograd function, where no gradient is known, has none.
    """
    squares: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor) -> None:
        squares[name] += gradient.square().sum(0)

    def follow(name: str, event: Event) -> None:
        if event.target.requires_grad:
            if name not in squares:
                squares[name] = torch.zeros_like(event.target[0])
            event.target.register_hook(partial(add, name))  # so that no gradient is kept beside others

    size = torch.zeros((), dtype=torch.float64)
    combinations: list[Tensor] = []
    with probing(network, {name: partial(follow, name) for name in neurons}), analog(), torch.enable_grad():
        for few in _few(batches, images):
            shown = few.clone().requires_grad_()
            logits = simulate(network, shown, 1)[0]
            size = size + logits.detach().square().sum(dtype=torch.float64)
            combinations = combinations or _normal(draws, logits)
            for draw, combination in enumerate(combinations):
                torch.autograd.grad((logits @ combination).sum(), shown, retain_graph=draw + 1 < draws, allow_unused=True)
    size = total(size)
    return {name: total(square) / (draws * float(size)) for name, square in squares.items()}


def _normal(count: int, logits: Tensor) -> list[Tensor]:
    """Random numbers ``[classes]``, so many times."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(logits.shape[-1], generator=generator).to(logits) for _ in range(count)]


def _few(batches: Iterable[Tensor], images: int) -> Iterator[Tensor]:
    """The first images, few at a time."""
    for batch in batches:
        yield from batch[:images].split(AT_ONCE)
        images -= len(batch)
        if images <= 0:
            return
