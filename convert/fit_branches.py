"""Substitutes one by one, front to back: each is fitted to what the stream of its network still lacks to the ANN's."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..calibration import NormalEquations
from ..data import seed_of
from ..errors import DivergedError
from ..finetune import Precision, Settings, Step, train
from ..spiking import over_time, shards
from ..spiking.substitutes import StaticNorm, SubstituteAttention, SubstituteMlp
from ..tracing import catching
from .branches import own_maps
from .inputs import OwnItems
from .structures import Refit
from .substitution import is_new_parameter, last_norm

HELD = 1024
"""Images whose streams are held in memory: twice N C floats for each."""
STARTED_ON = 64
"""Images from whose statistics a branch starts."""
CHUNK = 32  # images that are computed at once
RIDGE = 1e-1
"""Of the change of a branch's last map, whose inputs are as many as there are images: the ANN's map is the better guess."""
STEPS, BATCH, RATE = 200, 16, 1e-2
SLOWER = 0.25
"""Of the rate, where a fit at the full one leaves more than there was."""
INHERITED = 0.06
"""What starts from the ANN's weights learns at this fraction of the rate."""
PREFIX = 0.25
"""The weight of each token before the patches, such as the class token, over that of all patches."""

logger = logging.getLogger("vit2snn")


@dataclass(frozen=True)
class Place:
    """A branch of a network, x + scale(branch(norm(x))), and the ANN's beside it.

    Attributes:
        name: such as ``blocks.3.attn``.
        ours: norm, branch and scale of the network.
        own: those of the ANN.
        prefix: tokens before the patches.
        read: of a branch in the last block, the tokens that the head reads; None for all.
    """

    name: str
    ours: tuple[nn.Module, nn.Module, nn.Module]
    own: tuple[nn.Module, nn.Module, nn.Module]
    prefix: int
    read: slice | None = None

    @property
    def is_new(self) -> bool:
        """Whether it is a substitute."""
        return isinstance(self.ours[1], (SubstituteAttention, SubstituteMlp))

    def weights(self, x: Tensor) -> Tensor:
        """Of the tokens of ``x`` ``[B, N, C]`` in what a branch is fitted to, ``[N, 1]``."""
        weights = torch.ones_like(x[0, :, :1])
        weights[: self.prefix] = PREFIX * (x.shape[1] - self.prefix)
        if self.read is None:
            return weights
        matter = torch.zeros_like(weights)
        matter[self.read] = weights[self.read]
        return matter * (weights.sum() / matter.sum())


def places(network: VisionTransformer, ann: VisionTransformer) -> list[Place]:
    """All branches, front to back."""
    found, prefix = [], network.num_prefix_tokens
    last = {"token": slice(0, prefix), "avg": slice(prefix, None)}.get(network.global_pool)
    for index, (block, own) in enumerate(zip(network.blocks, ann.blocks, strict=True)):
        name, read = f"blocks.{index}", last if index == len(network.blocks) - 1 else None
        attention, mlp = (own.norm1, own.attn, own.ls1), (own.norm2, own.mlp, own.ls2)
        found.append(Place(f"{name}.attn", (block.norm1, block.attn, block.ls1), attention, prefix, read))
        found.append(Place(f"{name}.mlp", (block.norm2, block.mlp, block.ls2), mlp, prefix, read))
    return found


@dataclass(frozen=True)
class Effort:
    """What is done for each branch.

    Attributes:
        refit: ``none`` leaves it with the statistics that it starts from, ``ridge`` regresses its last map, all else trains it
            (from those statistics: regression first fits a thousand class tokens too closely).
        seed: of the order of images.
        precision: of the forward pass.
        done: branches that have been fitted before, and are only passed.
        report: called after each update, with the branch.
        fitted: called after each branch, with the number of those that have been fitted.
        steps: updates of each branch.
    """

    refit: Refit
    seed: int = 0
    precision: Precision = "no"
    done: int = 0
    report: Callable[[str, Step], None] = lambda branch, step: None
    fitted: Callable[[int], None] = lambda count: None
    steps: int = field(default_factory=lambda: STEPS)


class Streams:
    """The streams of a network and of its ANN, on the same images, side by side from branch to branch.

    Args:
        ann: in evaluation mode.
        images: ``[B, C, H, W]``.
        timesteps: T of the network that is made of it.

    Attributes:
        ours: the network's, ``[T, B, N, C]``.
        theirs: the ANN's, ``[B, N, C]``.
    """

    def __init__(self, ann: VisionTransformer, images: Tensor, timesteps: int = 1) -> None:
        with catching(ann.blocks[0]) as caught:
            for part in images.split(CHUNK):
                ann.forward_intermediates(part, indices=[0], stop_early=True, intermediates_only=True)
        self.theirs = torch.cat(caught)
        self.ours = self.theirs.repeat(timesteps, 1, 1, 1)

    def pass_theirs(self, place: Place) -> None:
        """Take the ANN's stream through its branch, in place."""
        norm, branch, scale = place.own
        _pass(_Residual(norm, branch, scale), self.theirs.unsqueeze(0))

    def pass_ours(self, place: Place) -> None:
        """Take the network's stream through its branch as it is now, in place."""
        _pass(_Residual(*place.ours), self.ours)


@torch.no_grad()
def fit_branches(network: VisionTransformer, ann: VisionTransformer, images: Tensor, effort: Effort) -> None:
    """Fit the substitutes in ``network``, front to back, and its last norm, in place.

    Args:
        network: with substitutes, in evaluation mode.
        ann: what it was made of, in evaluation mode.
        images: ``[B, C, H, W]``; of `HELD` or fewer.
        effort: see `Effort`.
    """
    streams, count = Streams(ann, images), 0
    for place in places(network, ann):
        count += place.is_new
        fits = place.is_new and count > effort.done
        if fits:
            torch.manual_seed(seed_of("branch", effort.seed, count))  # the same if a fit is resumed here
            start_place(place, streams.ours[0], streams.theirs)
        streams.pass_theirs(place)
        if fits:
            fit_place(place, streams.ours[0], streams.theirs, effort)
            effort.fitted(count)
        streams.pass_ours(place)
    last = network.get_submodule(last_norm(network))
    if isinstance(last, StaticNorm):
        pooled = last_norm(network) == "fc_norm"
        read = [network.pool(x) if pooled else x for x in (streams.ours[0], streams.theirs)]
        last.start(read[0], ann.get_submodule(last_norm(ann))(read[1]))
        agree(last)


def start_place(place: Place, ours: Tensor, theirs: Tensor) -> None:
    """Start one substitute in place, from the streams of its network and of the ANN in front of it, both ``[B, N, C]``."""
    norm, branch, _ = place.ours
    own_norm, own, _ = place.own
    assert isinstance(branch, (SubstituteAttention, SubstituteMlp))
    if isinstance(norm, StaticNorm):
        wanted = theirs.clone()
        _pass(own_norm, wanted.unsqueeze(0))
        norm.start(ours, wanted)
    if isinstance(branch, SubstituteAttention):
        few = ours[:STARTED_ON]
        with catching(own.get_submodule("proj")) as caught:
            own(own_norm(theirs[:STARTED_ON]))
        branch.start(norm(few), own_maps(own), caught[0])


def fit_place(place: Place, ours: Tensor, after: Tensor, effort: Effort) -> None:
    """Fit one substitute, which has been started, in place: it reads ``ours`` and shall give ``after - ours``.

    These are streams ``[B, N, C]``: of its network in front of the branch, and of the ANN behind its own.
    """
    norm, branch, _ = place.ours
    assert isinstance(branch, (SubstituteAttention, SubstituteMlp))
    if effort.refit == "ridge":
        equations = NormalEquations()
        for x, y in zip(ours.split(CHUNK), after.split(CHUNK), strict=True):
            mixed = branch.mixed(norm(x))
            weight = place.weights(x).expand(len(x), -1, -1).flatten()
            equations.update(mixed.flatten(0, 1), (y - x - branch.last(mixed)).flatten(0, 1), weight)
        change, shift = equations.solve(RIDGE)
        branch.last.weight.add_(change.to(ours))
        branch.last.bias.add_(shift.to(ours))
    agree(nn.ModuleList([norm, branch]))
    if effort.refit not in ("none", "ridge"):
        _train(place, ours, after, effort)


@torch.enable_grad()
def _train(place: Place, given: Tensor, wanted: Tensor, effort: Effort) -> None:
    """Gradient descent on the squared error, relative to the variance of what the stream lacks."""
    norm, branch, _ = place.ours
    pair = nn.Sequential(norm, branch)

    def pairs(index: Any) -> tuple[Tensor, Tensor]:
        x = given[index]
        return x, wanted[index] - x

    batches = OwnItems(pairs, len(given), BATCH, effort.seed)
    weight = place.weights(given)
    variance = shards.total(_variance(given, wanted)) / shards.processes()

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"lacking": ((model(x) - y).square() * weight).mean() / variance}

    def left(index: Tensor) -> Tensor:
        return objective(pair, *pairs(index))["lacking"]

    def fit(rate: float) -> None:
        train(
            pair, batches, settings(rate, effort.steps, len(batches), effort.seed, effort.precision), objective=objective,
            lr_scale=lambda name: 1.0 if is_new_parameter(pair, name) else INHERITED,
            report=lambda step: effort.report(place.name, step),
        )  # fmt: skip

    unless_worse(pair, place.name, left, len(given), fit)


def unless_worse(
    module: nn.Module, name: str, left: Callable[[Tensor], Tensor], count: int, fit: Callable[[float], None]
) -> None:
    """Fit a module; at a lower rate if the usual one leaves more than there was, and not at all if that does too.

    Args:
        module: in evaluation mode.
        name: to be told by.
        left: the mean error on images of the given indices.
        count: of the images, of which the first tell whether a fit is better.
        fit: at a rate.

    Raises:
        DivergedError: a fit comes to values that are not finite, and there were such before.
    """

    @torch.no_grad()
    def measured() -> Tensor:
        module.eval()
        shown = torch.arange(min(STARTED_ON, count)).split(CHUNK)
        return shards.total(torch.stack([left(index) * len(index) for index in shown]).sum())

    before, start = measured(), copy.deepcopy(module.state_dict())
    for rate in (RATE, SLOWER * RATE):
        try:
            fit(rate)
        except DivergedError:
            if not before.isfinite():
                raise
        else:
            if measured() < before:
                return
        module.load_state_dict(start)
    if shards.is_main():
        logger.warning("%s is left as it started: training takes it further from what its ANN computes", name)


def settings(rate: float, updates: int, steps: int, seed: int, precision: Precision) -> Settings:
    """One cycle: a rise over the first tenth of the updates, and a cosine to zero; ``steps`` updates make an epoch."""
    return Settings(
        max_steps=updates, lr=rate, warmup_epochs=0.1 * updates / steps, weight_decay=0.0, precision=precision, seed=seed
    )


class _Residual(nn.Module):
    """x + f(x), f one part after another."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.added = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.added(x)
        return x + added


def _pass(module: nn.Module, x: Tensor) -> None:
    """All timesteps of ``x`` ``[T, B, N, C]``, some images at a time, through a module that keeps their shape, in place."""
    for part in x.split(max(CHUNK // len(x), 1), 1):
        part.copy_(over_time(module, part))


def _variance(x: Tensor, y: Tensor) -> Tensor:
    """That of ``y - x``, some images at a time."""
    sums = torch.zeros(2, dtype=torch.float64, device=x.device)
    for a, b in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        difference = (b - a).double()
        sums += torch.stack([difference.sum(), difference.square().sum()])
    total, squares = sums
    variance: Tensor = (squares - total.square() / x.numel()) / (x.numel() - 1)
    return variance.to(x)


def agree(module: nn.Module) -> None:
    """Let all processes of a group go on from the same values."""
    for value in module.state_dict().values() if shards.processes() > 1 else ():
        value.copy_(shards.first(value))
