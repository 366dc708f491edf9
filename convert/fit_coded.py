"""All weights of a network with coded neurons, fitted through its spikes to what it computes without them.

Thresholds are the best for each neuron alone. What the errors of all neurons make of the output together is for the weights to
learn, on images without labels: the network without spikes tells what the output should be. Gradients are straight-through,
and taken at the end of a run (see `vit2snn.spiking.endings`), so that a step costs a run and about four passes of the ANN: the
teacher's, a forward and a backward one. Nothing in it knows a family: what is compared is what comes out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..finetune import Step, Workspace, train
from ..finetune.checkpoint import SPIKES
from ..measure.batches import set_digest
from ..spiking import CodedNeuron, Ending, Event, Run, neurons, probing, repeating, running, shards, simulate
from ..tracing.wavefront import wave
from .fit_branches import settings
from .fit_network import relative
from .fitting import EVERY, Fitting, Progress, held, weights_digest
from .inputs import Batches, unlabelled
from .precision import without_half
from .recipe import Recipe
from .teacher import analog_copy

BATCH, RATE = 16, 1e-4
CHECKED = 8
"""One of so many images is not trained on: it tells whether the training has helped."""

logger = logging.getLogger("vit2snn")


def fit_coded(network: nn.Module, recipe: Recipe, batches: Batches, seed: int, fitting: Fitting) -> None:
    """Train all parameters of ``network`` through its spikes, in place; buffers, such as thresholds, stay as they are.

    Weights that then do no better on some calibration images, which are not trained on where they are held in memory, are taken
    back with a warning.

    Args:
        network: with calibrated coded neurons, in evaluation mode.
        recipe: that it was converted with; ``spikes.refit_passes`` says for how long.
        batches: images ``[B, C, H, W]``; those of a tensor are shuffled and held in memory, others stay in their batches.
        seed: of the order of images.
        fitting: see `Fitting`.

    Raises:
        ArtifactError: a checkpoint cannot be read or written, or is one of another fit.
    """
    images, whole = held(batches)
    checked = images[: max(len(images) // CHECKED, 1)]
    shown = unlabelled(images[len(checked) :] if whole and len(images) > 1 else batches, BATCH, seed)
    updates = recipe.coded.refit_passes * len(shown)

    def report(step: Step) -> None:
        fitting.report(Progress("weights, spikes", (step.update + 1) / updates))

    with without_half(network):
        weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        teacher = analog_copy(network)
        identity = {
            "recipe": recipe.to_json(), "seed": seed, "precision": fitting.precision, "images": set_digest(batches.digests),
            "network": weights_digest(teacher),
        }  # fmt: skip
        likeness = Likeness(teacher, recipe)
        before = _error(likeness, network, checked)
        train(
            network, shown, settings(RATE, updates, len(shown), seed, fitting.precision), objective=likeness,
            workspace=_workspace(fitting, recipe, identity), report=report, statistics=False,
        )  # fmt: skip
        after = _error(likeness, network, checked)
        if not after < before:
            for name, parameter in network.named_parameters():
                parameter.data.copy_(weights[name])
            if shards.is_main():
                logger.warning(
                    "weights are as they were: trained through the spikes, they would leave an error of %.2g on %d calibration "
                    "images, and have %.2g now; take more of them (--samples)", after, len(checked), before,
                )  # fmt: skip


@torch.no_grad()
def _error(likeness: Likeness, network: nn.Module, images: Tensor) -> float:
    """The relative error of the output, over all processes."""
    found = [likeness.compared(network, x) for x in images.split(BATCH)]
    outputs, wanted = (torch.cat(each) for each in zip(*found, strict=True))
    lost, size = (outputs - wanted).square().sum(), wanted.square().sum()
    return float((shards.total(lost) / shards.total(size)).sqrt())


def _workspace(fitting: Fitting, recipe: Recipe, identity: dict[str, Any]) -> Workspace | None:
    if fitting.folder is None:
        return None
    folder: Path = fitting.folder / SPIKES if recipe.structure.replaces else fitting.folder  # which then is the structure's
    folder.mkdir(exist_ok=True)
    return Workspace(folder, EVERY, fitting.resume, identity)


class Likeness:
    """How far what a network puts out after its last timestep is from what it should be; the term ``output`` of a loss.

    It is the squared error over the variance of what it should be.

    Args:
        teacher: says that, in evaluation mode.
        recipe: of the network.
    """

    def __init__(self, teacher: nn.Module, recipe: Recipe) -> None:
        self.teacher, self.recipe = teacher, recipe

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The term, of images ``[B, C, H, W]``; labels are not looked at."""
        model.eval()  # drop nothing out: the ANN does not either
        return {"output": relative(*self.compared(model, x))}

    def compared(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the network puts out after its last timestep, and what it should."""
        with torch.no_grad():
            wanted: Tensor = self.teacher.to(x.device)(x)
            endings = endings_of(model, x, self.recipe)
        torch.clear_autocast_cache()  # which holds weights in half precision that no gradient goes through
        with running(Run(batch=len(x))), repeating(endings):
            return model(x), wanted


@torch.no_grad()
def endings_of(network: nn.Module, x: Tensor, recipe: Recipe) -> dict[nn.Module, Ending]:
    """What each coded neuron of ``network`` is left with after the recipe's timesteps of images ``[B, C, H, W]``."""
    found: dict[nn.Module, Ending] = {}
    timesteps = recipe.timesteps
    ranges = {neuron: neuron.range_after(timesteps) for neuron in _spiking(network).values()}

    def keep(neuron: CodedNeuron, event: Event) -> None:
        least, largest = ranges[neuron]
        reached = (event.target >= least) & (event.target <= largest)
        found[neuron] = Ending(event.decoded - event.target, reached)

    probes: dict[str, Callable[[Event], None]] = {name: partial(keep, neuron) for name, neuron in _spiking(network).items()}
    with probing(network, probes):
        if recipe.lag:
            wave(network, x.expand(timesteps, *x.shape))
        elif recipe.synchronous:
            with running(Run(elapsed=timesteps - 1, batch=len(x))):  # what is read at the end is computed from the end alone
                network(x)
        else:
            simulate(network, x, timesteps, chunk=1)
    return found


def _spiking(network: nn.Module) -> dict[str, CodedNeuron]:
    return {name: n for name, n in neurons(network) if isinstance(n, CodedNeuron) and n.alphabet is not None}
