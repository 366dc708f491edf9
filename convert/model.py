"""The result of a conversion: `SpikingModel`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..measure import Advice, Evaluation, ExitTable
from ..spiking import (
    CodedNeuron,
    analog,
    neurons,
    running_mean,
    simulate,
    stream,
)
from .advice import advise
from .planning import Plan
from .recipe import Recipe
from .substitution import is_new_parameter
from .teacher import Teacher, analog_copy


class SpikingModel(nn.Module):
    """A converted network: the ANN's modules under their own names, with neurons in front of every synaptic operation, and
    the time they live in.

    Attributes:
        network: the converted module tree.
        recipe: what it was converted with.
        plan: what became of each module.
        input_size: of one image, ``(C, H, W)``.
        teacher: the ANN, where the network with analog neurons does not compute it (any more); None where it does. It is no
            submodule.
        calibrated_on: digests of the calibration images (see `vit2snn.data.digest`), which must not be scored.
        exits: how sure the readout was on the calibration images, for early exits (`vit2snn.measure.anytime`); None for a
            layer-synchronous network, whose timesteps are no steps towards later ones.
    """

    channels_last = False

    def __init__(self, network: nn.Module, recipe: Recipe, plan: Plan, input_size: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.plan = plan
        self.input_size = input_size
        self.teacher: Teacher | None = None
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
        return torch.cat(list(self.stream(x, timesteps, chunk)))

    def stream(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Iterator[Tensor]:
        """The running readout chunk by chunk, ``[chunk, B, classes]``; whoever has seen enough may stop."""
        logits = stream(self.respond, x, self.recipe.timesteps if timesteps is None else timesteps, chunk)
        return running_mean(logits) if self.averages else logits

    def respond(self, frames: Tensor) -> Tensor:
        """See `vit2snn.spiking.SpikingNetwork`."""
        logits: Tensor = self.network(frames)
        return logits

    def readout(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Tensor:
        """What a call gives, by the name that it has in all spiking networks (see `vit2snn.spiking.SpikingNetwork`)."""
        logits: Tensor = self(x, timesteps, chunk)
        return logits

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

    @torch.no_grad()
    def exact(self, x: Tensor) -> Tensor | None:
        """The logits ``[B, classes]`` of the substitute that spikes approach; None where they approach the ANN itself, or where
        membrane neurons are a part of what was fitted."""
        if self.recipe.spike_driven or not self.recipe.structure.replaces:
            return None
        with analog():
            return simulate(self.network, x, 1)[0]

    def original(self) -> nn.Module:
        """The ANN that was converted, frozen, with the module names of timm; it shares nothing with the network."""
        if self.teacher is None:
            return analog_copy(self.network)
        return copy.deepcopy(self.teacher.on(next(self.network.parameters()).device))

    def neurons(self) -> dict[str, CodedNeuron]:
        """The coded neurons by name, in order of the module tree; membrane neurons are none."""
        return {name: neuron for name, neuron in neurons(self.network) if isinstance(neuron, CodedNeuron)}

    def is_new(self, parameter: str) -> bool:
        """Whether a parameter of the network, given by name, has no counterpart in the ANN: routers, gates, static norms."""
        return is_new_parameter(self.network, parameter)

    @property
    def timesteps(self) -> int:
        """T of the recipe."""
        return self.recipe.timesteps

    @property
    def averages(self) -> bool:
        """Whether the mean of the logits so far is read out: a spike-driven network has no values that are decoded so far."""
        return self.recipe.spike_driven

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
        """What stands beside the ANN's, and the module it belongs to: coded neurons, or blocks of membrane neurons."""
        if self.recipe.spike_driven:
            return {block.name: block.name for block in self.plan.blocks}
        return {name: self.owner(name) for name in self.neurons()}

    def advice(self, evaluation: Evaluation) -> list[Advice]:
        """What to do about what was measured; see `advise`."""
        return advise(evaluation.points, evaluation.lost(evaluation.points[-1]), evaluation.modules, self.recipe)

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

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write this model to the Hugging Face hub; see `vit2snn.storage.artifact.share` for the options and the result."""
        from ..storage.artifact import share

        return share(self, repo_id, **options)
