"""The blocks of any family one by one, front to back, each fitted to what the ANN's gives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..data import seed_of
from ..finetune import train
from ..spiking import DotProductAttention, shards
from ..spiking.substitutes import RectifiedSoftmax, StaticNorm
from .anatomy import Part
from .fit_branches import BATCH, CHUNK, INHERITED, PREFIX, RATE, STARTED_ON, Effort, agree, settings
from .inputs import OwnItems
from .lines import line_of, prefix_of
from .substitution import is_new_parameter


class _Reached(Exception):
    """A run has come as far as it has to."""


class Seen:
    """What the first call of a module, given by name, reads in a run of a network on images.

    Args:
        network: in evaluation mode.
        name: of the module.
        images: ``[B, C, H, W]``.
    """

    def __init__(self, network: nn.Module, name: str, images: Tensor) -> None:
        one, two = (self._run(network, name, images[:1].expand(count, -1, -1, -1))[0] for count in (1, 2))
        self.of_images = [isinstance(a, Tensor) and a.shape != b.shape for a, b in zip(one, two, strict=True)]
        parts = [self._run(network, name, part) for part in images.split(CHUNK)]
        self.structure: TreeSpec = parts[0][1]
        self.given = [
            torch.cat([part[0][place] for part in parts]) if varies else parts[0][0][place]
            for place, varies in enumerate(self.of_images)
        ]
        self.count = len(images)

    def of(self, index: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for some of the images."""
        some = [
            _images(value, index, self.count) if varies else value
            for value, varies in zip(self.given, self.of_images, strict=True)
        ]
        found: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(some, self.structure)
        return found

    @staticmethod
    @torch.no_grad()
    def _run(network: nn.Module, name: str, images: Tensor) -> tuple[list[Any], TreeSpec]:
        caught: list[Any] = []

        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append((args, kwargs))
            raise _Reached

        handle = network.get_submodule(name).register_forward_pre_hook(catch, with_kwargs=True)
        try:
            with suppress(_Reached):
                network(images)
        finally:
            handle.remove()
        return tree_flatten(caught[0])


def _images(x: Tensor, index: Tensor, count: int) -> Tensor:
    """Of a tensor with all images along its first axis, perhaps several parts of each, those of some."""
    some: Tensor = x.unflatten(0, (count, -1))[index.to(x.device)].flatten(0, 1)
    return some


@torch.no_grad()
def _given(network: nn.Module, name: str, images: Tensor) -> list[Tensor]:
    """The tensors that the first call of a module gives, in a run of a network on images."""
    found: list[list[Tensor]] = []

    def catch(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append([leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)])
        raise _Reached

    handle = network.get_submodule(name).register_forward_hook(catch)
    try:
        for part in images.split(CHUNK):
            with suppress(_Reached):
                network(part)
    finally:
        handle.remove()
    return [torch.cat(each) for each in zip(*found, strict=True)]


@torch.no_grad()
def fit_parts(network: nn.Module, ann: nn.Module, parts: Sequence[Part], images: Tensor, effort: Effort) -> None:
    """Start the substitutes in ``network``, and fit each block to what the ANN's gives, in place.

    Args:
        network: with substitutes in place of functions, in evaluation mode.
        ann: what it was made of, in evaluation mode.
        parts: that have substitutes, in order of execution, with the functions that were replaced; what lies in no block is a
            part of its own.
        images: ``[B, C, H, W]``.
        effort: see `Effort`.
    """
    for count, part in enumerate(parts, 1):
        if count <= effort.done:
            continue
        torch.manual_seed(seed_of("part", effort.seed, count))  # the same if a fit is resumed here
        for function in part.functions:
            _start(network, ann, line_of(function), images[:STARTED_ON])
        block = network.get_submodule(part.name)
        agree(block)
        if effort.refit not in ("none", "ridge") and part.is_block:
            seen, wanted = Seen(network, part.name, images), _given(ann, part.name, images)
            _train(block, seen, wanted, prefix_of(ann), part.name, effort)
        effort.fitted(count)


def _start(network: nn.Module, ann: nn.Module, name: str, images: Tensor) -> None:
    """Start what takes the place of one function from what it reads and, of a norm, what the ANN's gives."""
    line = network.get_submodule(name)
    if isinstance(line, DotProductAttention):
        name, line = f"{name}.softmax", line.softmax
    if isinstance(line, StaticNorm):
        line.start(_first(network, name, images), _given(ann, name, images)[0])
    elif isinstance(line, RectifiedSoftmax):
        line.start(_first(network, name, images), len(images))


def _first(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """The first argument of the first call of a module, in a run of a network on images."""
    x: Tensor = Seen(network, name, images).given[0]
    return x


@torch.enable_grad()
def _train(block: nn.Module, seen: Seen, wanted: list[Tensor], prefix: int, name: str, effort: Effort) -> None:
    """Gradient descent on the squared error, relative to the variance of what the block adds."""
    count = seen.count
    batches = OwnItems(lambda index: (torch.tensor(index), 0), count, BATCH, effort.seed)
    stream = next((x for x, varies in zip(seen.given, seen.of_images, strict=True) if varies), None)
    scales = []
    for y in wanted:
        added = y - stream if stream is not None and stream.shape == y.shape else y
        scales.append(shards.total(added.var()) / shards.processes())

    def objective(model: nn.Module, index: Tensor, labels: Tensor) -> dict[str, Tensor]:
        model.eval()
        args, kwargs = seen.of(index)
        found = [leaf for leaf in tree_flatten(model(*args, **kwargs))[0] if isinstance(leaf, Tensor)]
        errors = [
            ((x - _images(y, index, count)).square() * _weights(x, prefix)).mean() / scale
            for x, y, scale in zip(found, wanted, scales, strict=True)
        ]
        return {"lacking": torch.stack(errors).sum()}

    buffers = {key: buffer.clone() for key, buffer in block.named_buffers()}
    train(
        block, batches, settings(RATE, effort.steps, len(batches), effort.seed, effort.precision), objective=objective,
        lr_scale=lambda key: 1.0 if is_new_parameter(block, key) else INHERITED,
        report=lambda step: effort.report(name, step),
    )  # fmt: skip
    for key, buffer in block.named_buffers():
        buffer.copy_(buffers[key])


def _weights(x: Tensor, prefix: int) -> Tensor:
    """Of the tokens of ``x``: those before the patches count more."""
    if not prefix or x.ndim != 3 or x.shape[1] <= prefix:
        return x.new_ones(())
    weights = torch.ones_like(x[0, :, :1])
    weights[:prefix] = PREFIX * (x.shape[1] - prefix)
    return weights
