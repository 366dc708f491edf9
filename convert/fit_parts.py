"""The blocks of any family one by one, front to back, each fitted to what the ANN's gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..data import seed_of
from ..finetune import train
from ..spiking import DotProductAttention, shards
from ..spiking.substitutes import RectifiedSoftmax, StaticNorm
from .anatomy import Part
from .fit_branches import BATCH, INHERITED, PREFIX, STARTED_ON, Effort, agree, settings, unless_worse
from .inputs import OwnItems
from .lines import line_of, prefix_of
from .seen import Seen, chained, images_of, tensors_of
from .substitution import is_new_parameter


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
    trained = effort.refit not in ("none", "ridge")
    shown = images if trained else images[:STARTED_ON]
    in_chain = chained(ann, [part.name for part in parts], shown[:1])
    # What the block before gives, and the ANN's, where this block reads just that:
    streams: tuple[Tensor | None, Tensor | None] = (None, None)
    for count, part in enumerate(parts, 1):
        if count <= effort.done:
            continue
        torch.manual_seed(seed_of("part", effort.seed, count))  # the same if a fit is resumed here
        block, own = network.get_submodule(part.name), ann.get_submodule(part.name)
        read = Seen.by_network(shown if part.is_block else shown[:STARTED_ON])
        seen, wanted = (read.within(whole, part.name, stream) for whole, stream in zip((network, ann), streams, strict=True))
        few = seen.first(STARTED_ON), wanted.first(STARTED_ON)
        for function in part.functions:
            name = line_of(function).removeprefix(part.name).removeprefix(".")
            _start(block, own, name, *few)
        agree(block)
        following = parts[count] if count < len(parts) else None
        goes_on = following is not None and part.is_block and following.is_block and following.name in in_chain
        trains = trained and part.is_block
        theirs = wanted.given_by(own) if goes_on or trains else []
        del wanted  # a stream of all images, which a training needs no more
        streams = (None, None)
        if trains:
            _train(block, seen, theirs, prefix_of(ann), part.name, effort)
        streams = (seen.given_by(block)[0], theirs[0]) if goes_on else (None, None)
        effort.fitted(count)


def _start(block: nn.Module, own: nn.Module, name: str, seen: Seen, theirs: Seen) -> None:
    """Start what takes the place of one function of a block from what it reads and, of a norm, what the ANN's gives.

    ``name`` is that of the substitute in the block; ``seen`` is what the block reads, and ``theirs`` what the ANN's does.
    """
    line = block.get_submodule(name)
    if isinstance(line, DotProductAttention):
        name, line = f"{name}.softmax".removeprefix("."), line.softmax
    if isinstance(line, StaticNorm):
        line.start(seen.within(block, name).given[0], theirs.within(own, name).given_by(own.get_submodule(name))[0])
    elif isinstance(line, RectifiedSoftmax):
        line.start(seen.within(block, name).given[0], seen.count)


@torch.enable_grad()
def _train(block: nn.Module, seen: Seen, wanted: list[Tensor], prefix: int, name: str, effort: Effort) -> None:
    """Gradient descent on the squared error, relative to the variance of what the block adds."""
    count = seen.count
    batches = OwnItems(lambda index: (torch.tensor(index), 0), count, BATCH, effort.seed)
    stream = next((x for x, varies in zip(seen.given, seen.varies, strict=True) if varies), None)
    scales = []
    for y in wanted:
        added = y - stream if stream is not None and stream.shape == y.shape else y
        scales.append(shards.total(added.var()) / shards.processes())

    def lacking(model: nn.Module, index: Tensor) -> Tensor:
        args, kwargs = seen.of(index)
        found = tensors_of(model(*args, **kwargs))
        errors = [
            ((x - images_of(y, index, count)).square() * _weights(x, prefix)).mean() / scale
            for x, y, scale in zip(found, wanted, scales, strict=True)
        ]
        return torch.stack(errors).sum()

    def objective(model: nn.Module, index: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"lacking": lacking(model.eval(), index)}

    def fit(rate: float) -> None:
        train(
            block, batches, settings(rate, effort.steps, len(batches), effort.seed, effort.precision), objective=objective,
            lr_scale=lambda key: 1.0 if is_new_parameter(block, key) else INHERITED,
            report=lambda step: effort.report(name, step), statistics=False,
        )  # fmt: skip

    unless_worse(block, name, partial(lacking, block), count, fit)


def _weights(x: Tensor, prefix: int) -> Tensor:
    """Of the tokens of ``x``: those before the patches count more."""
    if not prefix or x.ndim != 3 or x.shape[1] <= prefix:
        return x.new_ones(())
    weights = torch.ones_like(x[0, :, :1])
    weights[:prefix] = PREFIX * (x.shape[1] - prefix)
    return weights
