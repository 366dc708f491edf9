"""The verb and its result: `to_spiking` makes a `SpikingModel`."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import calibrate
from ..errors import DataError, ModelError
from ..measure import Advice, Evaluation, ExitTable, exit_table
from ..measure.exits import confidence as sureness
from ..spiking import (
    Branch,
    CodedNeuron,
    InTurn,
    SpikingDotProductAttention,
    analog,
    neurons,
    prepare_process,
    rotate_inputs,
    shards,
    simulate,
    stream,
    twin,
)
from ..tracing import untied
from .absorption import absorb_functions, absorb_norms
from .advice import advise
from .auto import Candidate, candidates, choose
from .batch_axis import check_images_apart
from .budget import affordable
from .functions import replace_functions, replace_softmax
from .inputs import Batches, checked, seeded
from .planning import Plan, plan
from .products import drive_operations
from .recipe import Recipe
from .registry import handler_for
from .spike_driven import fit, restructure
from .teacher import Teacher, analog_copy


class SpikingModel(nn.Module):
    """A converted network: the ANN's modules under their own names, with neurons in front of every synaptic operation or with
    spiking branches in the blocks, and the time they live in.

    Attributes:
        network: the converted module tree.
        recipe: what it was converted with.
        plan: what became of each module.
        input_size: of one image, ``(C, H, W)``.
        teacher: the ANN, where the network with analog neurons does not compute it (any more); None where it does. It is no
            submodule.
        folded: whether batch normalisations have been folded away (see `vit2snn.convert.fold`).
        calibrated_on: digests of the calibration images (see `vit2snn.data.digest`), which must not be scored.
        exits: how sure the readout was on the calibration images, for `anytime`; None for a layer-synchronous network, whose
            timesteps are no steps towards later ones.
    """

    channels_last = False

    def __init__(self, network: nn.Module, recipe: Recipe, plan: Plan, input_size: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.plan = plan
        self.input_size = input_size
        self.teacher: Teacher | None = None
        self.folded = False
        self.calibrated_on: tuple[str, ...] = ()
        self.exits: ExitTable | None = None

    def forward(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Tensor:
        """Show an image for a number of timesteps and read the logits at each.

        Every call starts from rest. A run of T timesteps is the beginning of a longer one.

        Args:
            x: ``[B, C, H, W]``, or one input for each timestep, ``[T, B, C, H, W]``.
            timesteps: T; the recipe's unless given.
            chunk: timesteps computed at once. Memory grows with it; the result does not depend on it.

        Returns:
            The running readout ``[T, B, classes]``: logits of the values decoded so far or, in a spike-driven network, the mean
            of the logits so far.
        """
        timesteps = self.recipe.timesteps if timesteps is None else timesteps
        logits = simulate(self.network, x, timesteps, chunk)
        if not self.recipe.spike_driven:
            return logits
        return logits.cumsum(0) / torch.arange(1, timesteps + 1, device=logits.device).reshape(-1, 1, 1)

    def readout(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Tensor:
        """What a call gives, by the name that it has in all spiking networks (see `vit2snn.spiking.SpikingNetwork`)."""
        logits: Tensor = self(x, timesteps, chunk)
        return logits

    @torch.no_grad()
    def anytime(self, x: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
        """Show each image only until the readout is sure enough; the run ends when all images have stopped.

        Args:
            x: ``[B, C, H, W]``.
            confidence: share of the images that are to keep, when stopped, the class they would get after all timesteps.

        Returns:
            Logits ``[B, classes]``, and how many timesteps each image took, ``[B]``.

        Raises:
            ModelError: the network has no calibration of exits.
            ValueError: the confidence is not between 0 and 1.
        """
        limits = self.exit_limits(confidence).to(x.device)
        logits, taken = x.new_zeros(0), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        total: Tensor | float = 0.0
        steps = stream(self.network, x, len(limits), chunk=1)
        for t, (readout,) in enumerate(steps, start=1):
            if self.recipe.spike_driven:
                total = total + readout
                readout = total / t
            logits = readout if t == 1 else torch.where(taken[:, None] > 0, logits, readout)
            taken = torch.where((taken == 0) & (sureness(readout) >= limits[t - 1]), t, taken)
            if bool((taken > 0).all()):
                break
        steps.close()
        return logits, taken

    def exit_limits(self, confidence: float) -> Tensor:
        """How sure the readout has to be to stop after each timestep, ``[T]``; see `vit2snn.measure.ExitTable.thresholds`.

        Raises:
            ModelError: the network has no calibration of exits.
            ValueError: the confidence is not between 0 and 1.
        """
        if self.exits is None:
            if self.recipe.synchronous:
                raise ModelError(
                    "a layer-synchronous network has no early exits: its layers take their timesteps one after another",
                    "convert the ANN with another recipe",
                )
            raise ModelError(
                "this network has no calibration of early exits",
                "convert the ANN again, or set exits = vit2snn.measure.exit_table(snn, batches)",
            )
        return self.exits.thresholds(confidence)

    @torch.no_grad()
    def ann(self, x: Tensor) -> Tensor:
        """The logits ``[B, classes]`` of the ANN that was converted."""
        if self.teacher is not None:
            return self.teacher(x)
        with analog():
            return simulate(self.network, x, 1)[0]

    def original(self) -> nn.Module:
        """The ANN that was converted, frozen, with the module names of timm; it shares nothing with the network."""
        if self.teacher is None:
            return analog_copy(self.network)
        return copy.deepcopy(self.teacher.on(next(self.network.parameters()).device))

    def neurons(self) -> dict[str, CodedNeuron]:
        """The coded neurons by name, in order of the module tree; spiking branches have membrane neurons instead."""
        return {name: neuron for name, neuron in neurons(self.network) if isinstance(neuron, CodedNeuron)}

    def is_new(self, parameter: str) -> bool:
        """Whether a parameter of the network, given by name, has no counterpart in the ANN: routers, temporal interaction."""
        branches = ((name, module) for name, module in self.network.named_modules() if isinstance(module, Branch))
        return any(parameter.startswith(f"{name}.{part}.") for name, branch in branches for part in branch.new_parts())

    @property
    def timesteps(self) -> int:
        """T of the recipe."""
        return self.recipe.timesteps

    @property
    def synchronous(self) -> bool:
        """Whether each layer goes through all timesteps before the next one begins."""
        return self.recipe.synchronous

    @property
    def reference(self) -> nn.Module:
        """The module tree in which `ann` computes."""
        return self.network if self.teacher is None else self.teacher.on(next(self.network.parameters()).device)

    @property
    def compared(self) -> dict[str, str]:
        """What stands beside the ANN's, and the module it belongs to: coded neurons or, where branches are spiking, blocks."""
        if self.recipe.spike_driven:
            return {block.name: block.name for block in self.plan.blocks}
        return {name: self.owner(name) for name in self.neurons()}

    def advice(self, evaluation: Evaluation) -> list[Advice]:
        """What to do about what was measured; see `advise`."""
        assert evaluation.ann_top1 is not None
        return advise(evaluation.points, evaluation.ann_top1, evaluation.modules, self.recipe)

    def owner(self, neuron: str) -> str:
        """The planned module that a neuron, given by name, belongs to."""
        names = {module.name for module in self.plan.modules if module.action == "spiking"}
        while neuron not in names:
            neuron = neuron.rpartition(".")[0]
        return neuron

    def save(self, out: str | Path, **options: Any) -> None:
        """Write this model into a folder; see `vit2snn.storage.save` for the options."""
        from ..storage.artifact import save

        save(self, out, **options)


def to_spiking(
    model: nn.Module,
    recipe: Recipe | str = "faithful",
    images: Tensor | Iterable[Any] | None = None,
    seed: int = 0,
) -> SpikingModel:
    """Convert a pretrained timm model into a spiking network.

    The result depends on the arguments alone. The model is not changed; the result shares nothing with it, and all its
    parameters can be trained. Random numbers that others draw are not touched.

    The processes of a ``torch.distributed`` group convert together: each calls this with its share of the images, and all get
    the network that one process gets with all images (a batch of each process counts as one large batch).

    Args:
        model: the ANN, with its weights.
        recipe: a `Recipe`, or the name of one.
        images: calibration images, preprocessed: ``[N, C, H, W]``, or batches (see `vit2snn.convert.inputs.Batches`) that can
            be iterated over several times, such as a DataLoader. A few dozen to a few hundred; labels are not used.
        seed: of what has no counterpart in the ANN, such as the routers of experts.

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
        return _to_spiking(model, recipe, batches)


def _to_spiking(model: nn.Module, recipe: Recipe, batches: Batches) -> SpikingModel:
    first = batches.first()
    if recipe.structure.undecided:
        recipe = choose(recipe, _over_processes(list(candidates(Teacher(model).ann, recipe, batches))))
    elif recipe.max_energy is not None:
        recipe = affordable(lambda trial: _fitted(model, trial, [first]), recipe, first)
    snn = _fitted(model, recipe, batches)
    snn.calibrated_on = shards.collected(batches.digests)
    own = exit_table(snn, batches)
    snn.exits = own and own.over_processes()
    return snn


def _fitted(model: nn.Module, recipe: Recipe, batches: Iterable[Tensor]) -> SpikingModel:
    """The converted network, calibrated and re-fitted; the recipe leaves nothing to be chosen."""
    first = next(iter(batches))
    snn = structure(model, recipe, tuple(first.shape[1:]))
    if not recipe.structure.keeps_function:
        snn.teacher = Teacher(model)
    if not recipe.spike_driven:
        check_images_apart(snn.network, first[:1])
    elif snn.teacher is not None:
        fit(snn.network, snn.teacher.ann, snn.plan.blocks, recipe, batches)
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


def _over_processes(found: list[Candidate]) -> list[Candidate]:
    """Candidates with the means of what the processes measured, so that all choose the same."""
    means = shards.total(torch.tensor([[c.error, c.energy] for c in found], dtype=torch.float64)) / shards.processes()
    return [
        dataclasses.replace(candidate, error=error, energy=energy)
        for candidate, (error, energy) in zip(found, means.tolist(), strict=True)
    ]


def structure(model: nn.Module, recipe: Recipe, input_size: tuple[int, ...]) -> SpikingModel:
    """A converted copy of ``model`` whose neurons are not calibrated yet: `to_spiking` without its images.

    Raises:
        UnsupportedModuleError: a module has no rule.
        NothingConvertedError: the model has no synaptic operation that the recipe converts.
        RecipeError: the recipe names blocks that the model does not have, or mixes no tokens.
    """
    planned = plan(model, recipe, input_size)
    network = untied(copy.deepcopy(model)).eval().requires_grad_(True)  # the ANN may be frozen, as a teacher is
    absorb_norms(network, planned.absorbed)
    replace_functions(network, planned.blocks, recipe)
    if recipe.spike_driven:
        restructure(network, planned.blocks, recipe)
    with torch.device(next(network.parameters()).device):  # where neurons keep what is calibrated
        _convert_children(network, "", planned, recipe)
        network = _converted(network, "", planned, recipe)
    replace_softmax(network, planned.blocks)
    absorb_functions(network, planned.absorbed)
    if recipe.coded.rotation:
        rotate_inputs(network)
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
    coded = planned.coded(path)
    if coded is None:
        return module
    neuron = partial(recipe.coded.neuron, sees_image=path == planned.first)
    handler = handler_for(module)
    turns: list[nn.Module] = []
    for use in sorted({call.use for call in coded.calls}):
        one = twin(module, type(module))
        calls = [call for call in coded.calls if call.use == use]
        turns.append(handler(one, neuron) if handler else drive_operations(one, calls, neuron))
    return InTurn(turns) if len(turns) > 1 else turns[0]
