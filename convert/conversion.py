"""The verb: `to_spiking` makes a `SpikingModel` of a timm model."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import calibrate
from ..errors import DataError
from ..measure import exit_table
from ..spiking import (
    Balanced,
    CodedNeuron,
    InTurn,
    Neuron,
    SpikingDotProductAttention,
    prepare_process,
    rotate_inputs,
    shards,
    twin,
)
from ..tracing import untied
from .absorption import absorb_functions, absorb_norms
from .auto import candidates, choose
from .batch_axis import check_images_apart, check_times_aligned
from .budget import affordable
from .fit_coded import fit_coded
from .fitting import Fit, Fitting
from .functions import replace_functions, replace_softmax
from .inputs import Batches, checked, seeded
from .membrane import fire
from .model import SpikingModel
from .multihead import open_attention
from .planning import Plan, plan, substitution
from .products import drive_operations
from .recipe import Recipe
from .registry import NeuronFactory, handler_for
from .rounding import mark_weights, round_weights
from .spikes import Membrane
from .substitution import Substitution, substitute
from .teacher import Teacher

THRESHOLDS_ON = 256
"""Images from which the thresholds of a substitute's neurons are taken. Its weights may be fitted to more, of which
thresholds, a few numbers a neuron, would gain nothing."""


def to_spiking(
    model: nn.Module,
    recipe: Recipe | str = "faithful",
    images: Tensor | Iterable[Any] | None = None,
    seed: int = 0,
    fitting: Fitting | None = None,
) -> SpikingModel:
    """Convert a pretrained timm model into a spiking network.

    The result depends on the arguments alone. The model is not changed; the result shares nothing with it, and all its
    parameters can be trained. Random numbers that others draw are not touched.

    The processes of a ``torch.distributed`` group convert together: each calls this with its share of the images, and all get
    the network that one process gets with all images (a batch of each process counts as one large batch). Where substitutes
    are trained all get the same network, which is that of larger batches.

    Args:
        model: the ANN, with its weights.
        recipe: a `Recipe`, or the name of one.
        images: calibration images, preprocessed: ``[N, C, H, W]``, or batches (see `vit2snn.convert.inputs.Batches`) that can
            be iterated over several times, such as a DataLoader. A few dozen to a few hundred; labels are not used.
        seed: of what has no counterpart in the ANN, such as the routers of experts, and of the order of images in a fit.
        fitting: how substitutes are fitted: precision, progress, checkpoints; see `Fitting`.

    Raises:
        UnsupportedModuleError: a module has no rule; nothing has been done.
        NothingConvertedError: the model has no synaptic operation that the recipe converts.
        DataError: there are no images, they are none of the model's, they change from pass to pass, or the processes of a group
            have unequally many batches.
        ModelError: weights or activations are not finite, or some signal mixes the images of a batch; the message names the
            module.
    """
    prepare_process()
    recipe = Recipe.find(recipe) if isinstance(recipe, str) else recipe
    model = checked(model)
    batches = Batches(images, like=next(model.parameters()))
    _check_in_step(batches)
    # Within inference mode no gradient could be taken, of which calibration needs some.
    with torch.inference_mode(False), torch.enable_grad(), seeded(seed, next(model.parameters()).device):
        return _to_spiking(model, recipe, batches, seed, fitting or Fitting())


def _to_spiking(model: nn.Module, recipe: Recipe, batches: Batches, seed: int, fitting: Fitting) -> SpikingModel:
    first = batches.first()
    if recipe.structure.undecided:
        ann, kept, again = Teacher(model).ann, fitting.folder, fitting.resume
        recipe = choose(recipe, list(candidates(ann, recipe, batches, seed=seed, folder=kept, resume=again)))
    size = tuple(first.shape[1:])
    plan(model, recipe, size)  # refuses what cannot be converted before anything is fitted
    network, chosen = substituted(model, recipe, size)
    fit = Fit(network, chosen, Teacher(model).ann, recipe, batches, seed, fitting) if recipe.structure.replaces else None
    if fit:
        fit.structure()
        if not recipe.spike_driven:
            fit = None  # nothing follows that needs it, and it holds an ANN and all images
    if recipe.max_energy is not None:
        recipe = affordable(lambda trial: _spiking(model, copy.deepcopy(network), trial, [first], None), recipe, first)
    seen = batches.some(THRESHOLDS_ON // shards.processes()) if recipe.structure.replaces else batches
    snn = _spiking(model, network, recipe, seen, fit)
    if recipe.coded.refit_passes:
        fit_coded(snn.network, recipe, batches, seed, fitting)
    snn.calibrated_on = shards.collected(batches.digests)
    own = exit_table(snn, seen)
    snn.exits = own and own.over_processes()
    return snn


def _spiking(model: nn.Module, network: Any, recipe: Recipe, batches: Iterable[Tensor], fit: Fit | None) -> SpikingModel:
    """``network``, a copy of the model whose substitutes are fitted, with neurons that are calibrated.

    Membrane neurons take ``fit``, which has fitted the substitutes.
    """
    first = next(iter(batches))
    size = tuple(first.shape[1:])
    snn = _driven(network, recipe, plan(model, recipe, size), size)
    if not recipe.keeps_function:
        snn.teacher = Teacher(model)
    if not recipe.spike_driven:
        check_images_apart(snn.network, first[:1])
        if recipe.lag:
            check_times_aligned(snn.network, first[:1])
    elif fit:
        fit.spikes()
    round_weights(snn.network, batches, recipe.timesteps)
    coded = recipe.coded
    if snn.neurons() and coded.alphabet is not None:
        # Beside membrane neurons, one timestep is no ANN from which the worth of a spike could be learned.
        sense = not recipe.spike_driven
        calibrate(snn.network, batches, recipe.timesteps, coded.threshold_rule, coded.prior, coded.bias, sense)
    for value in snn.network.state_dict().values() if shards.processes() > 1 else ():
        value.copy_(shards.first(value))  # where devices round differently
    return snn


def _check_in_step(batches: Batches) -> None:
    """The statistics of all processes are put together batch by batch."""
    if shards.processes() == 1:
        return
    count = torch.tensor(sum(1 for _ in batches))
    fewest, most = int(shards.smallest(count)), int(shards.largest(count))
    if fewest != most:
        raise DataError(
            f"the processes have from {fewest} to {most} batches of calibration images, and go through them in step",
            "give all processes equally many batches",
        )


def structure(model: nn.Module, recipe: Recipe, input_size: tuple[int, ...]) -> SpikingModel:
    """A converted copy of ``model`` whose neurons are not calibrated yet: `to_spiking` without its images.

    Raises:
        UnsupportedModuleError: a module has no rule.
        NothingConvertedError: the model has no synaptic operation that the recipe converts.
        RecipeError: the recipe names blocks that the model does not have, or mixes no tokens.
    """
    network, _ = substituted(model, recipe, input_size)
    return _driven(network, recipe, plan(model, recipe, input_size), input_size)


def substituted(model: nn.Module, recipe: Recipe, input_size: tuple[int, ...]) -> tuple[Any, Substitution]:
    """A copy of ``model``, with the substitutes that the recipe names, which are not fitted yet; and which they are."""
    network: Any = untied(copy.deepcopy(model)).eval().requires_grad_(True)  # the ANN may be frozen, as a teacher is
    network, chosen = open_attention(network, recipe), Substitution()
    if recipe.structure.replaces:
        chosen = substitution(network, recipe, input_size)
        substitute(network, chosen, recipe.structure)
    return network, chosen


def _driven(network: Any, recipe: Recipe, planned: Plan, input_size: tuple[int, ...]) -> SpikingModel:
    """``network`` with neurons that are not calibrated yet, as it was planned; it becomes part of the result."""
    absorb_norms(network, planned.absorbed)
    replace_functions(network, planned.blocks, recipe)
    if isinstance(recipe.spikes, Membrane):
        fire(network, planned.blocks, recipe.spikes)
    _convert_children(network, "", planned, recipe)
    network = _converted(network, "", planned, recipe)
    weight = next(network.parameters())
    for module in network.modules():
        if isinstance(module, (Neuron, Balanced)):
            module.to(weight.device, weight.dtype)
    replace_softmax(network, planned.blocks)
    absorb_functions(network, planned.absorbed)
    if recipe.coded.rotation:
        rotate_inputs(network)
    mark_weights(network, planned, recipe)
    for module in network.modules():
        if isinstance(module, SpikingDotProductAttention) and isinstance(module.weights, CodedNeuron):
            module.weights.spikes_per_step = max(recipe.coded.spikes_per_step, recipe.coded.attention_spikes)
    return SpikingModel(network, recipe, planned, input_size).eval()


def _convert_children(module: nn.Module, prefix: str, planned: Plan, recipe: Recipe) -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}.{name}" if prefix else name
        _convert_children(child, path, planned, recipe)
        setattr(module, name, _converted(child, path, planned, recipe))


def _converted(module: nn.Module, path: str, planned: Plan, recipe: Recipe) -> nn.Module:
    driven = planned.driven(path)
    synaptic = [call for call in driven.calls if call.macs] if driven else []
    if driven is None or (synaptic and not any(call.driven for call in synaptic)):  # all that it reads are spikes already
        return module
    neuron: NeuronFactory = partial(recipe.coded.neuron, recipe.timesteps, sees_image=path == planned.first)
    if isinstance(recipe.spikes, Membrane) and planned.in_substitutes(path):
        neuron = recipe.spikes.balanced
    handler = handler_for(module)
    turns: list[nn.Module] = []
    for use in sorted({call.use for call in driven.calls}):
        one = twin(module, type(module))
        calls = [call for call in driven.calls if call.use == use]
        turns.append(handler(one, neuron) if handler else drive_operations(one, calls, neuron))
    return InTurn(turns) if len(turns) > 1 else turns[0]
