"""The result of a conversion: `SpikingModel`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models._features import feature_take_indices
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
from ..tracing.wavefront import waves
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

        Every call starts from rest. A run of T timesteps is the beginning of a longer one, unless layers wait for those before
        them (recipe field ``spikes.schedule``): then what is read at timestep t is what a run of t timesteps gives. Each
        of these is computed by itself in a wavefront.

        Args:
            x: ``[B, C, H, W]``, or one input for each timestep, ``[T, B, C, H, W]``.
            timesteps: T; the recipe's unless given.
            chunk: timesteps computed at once. Memory grows with it; the result does not depend on it. A wavefront is
                computed at once.

        Returns:
            The running readout ``[T, B, classes]``: logits of the values decoded so far or, in a spike-driven network, the mean
            of the logits so far.
        """
        return torch.cat(list(self.stream(x, timesteps, chunk)))

    def stream(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Iterator[Tensor]:
        """The running readout chunk by chunk, ``[chunk, B, classes]``; whoever has seen enough may stop."""
        return self._read(self.respond, x, timesteps, chunk)

    def _read(
        self, network: Callable[[Tensor], Tensor], x: Tensor, timesteps: int | None, chunk: int | None
    ) -> Iterator[Tensor]:  # fmt: skip
        """What a part of the network puts out after each timestep, chunk by chunk."""
        timesteps = self.recipe.timesteps if timesteps is None else timesteps
        if self.recipe.lag:
            return waves(network, x, timesteps)
        outputs = stream(network, x, timesteps, chunk)
        return running_mean(outputs) if self.averages else outputs

    def respond(self, frames: Tensor) -> Tensor:
        """See `vit2snn.spiking.SpikingNetwork`."""
        logits: Tensor = self.network(frames)
        return logits

    def forward_features(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Tensor:
        """The features that timm's ``forward_features`` gives, read after each timestep: ``[T, B, N, C]``, or maps.

        Args:
            x: as for `forward`.
            timesteps: T; the recipe's unless given.
            chunk: timesteps computed at once.

        Raises:
            ModelError: the ANN's class has no such method, or some tokens, which a classifier does not read, send no spikes.
        """
        compute = self._of_timm("forward_features")
        self._check_all_speak(None)
        return torch.cat(list(self._read(compute, x, timesteps, chunk)))

    def intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, timesteps: int | None = None, chunk: int | None = None,
        **options: Any,
    ) -> list[Tensor]:  # fmt: skip
        """Features behind blocks (see timm's ``forward_intermediates``), read after each timestep: ``[T, B, C, H, W]`` each.

        Args:
            x: as for `forward`.
            indices: which points of ``feature_info``; all if None, the last n for an int.
            timesteps: T; the recipe's unless given.
            chunk: timesteps computed at once.
            options: of timm: ``norm``, ``stop_early``, ``output_fmt``.

        Raises:
            ModelError: as for `forward_features`; or ``norm`` is asked for and holds neurons, which compute once in a timestep.
        """
        if options.get("norm") and any(neurons(getattr(self.network, "norm", nn.Identity()))):
            told = "the norm holds neurons, which compute once in a timestep, so it cannot serve several blocks"
            raise ModelError(told, "take norm=False")
        compute, found = self._of_timm("forward_intermediates"), list[list[Tensor]]()
        _, last = feature_take_indices(len(self.feature_info), indices)
        self._check_all_speak(self.feature_info[last]["module"])

        def collect(frames: Tensor) -> Tensor:
            found.append(compute(frames, indices=indices, intermediates_only=True, **options))
            return found[-1][-1]

        for _ in stream(collect, x, self.recipe.timesteps if timesteps is None else timesteps, chunk):
            pass
        images = x.shape[1] if x.ndim == 5 else len(x)
        whole = [torch.cat([part.unflatten(0, (-1, images)) for part in parts]) for parts in zip(*found, strict=True)]
        return [next(running_mean([part])) for part in whole] if self.averages else whole

    def forward_intermediates(
        self, x: Tensor, indices: int | Sequence[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False, timesteps: int | None = None,
    ) -> Any:  # fmt: skip
        """The same as timm has it, after the last timestep: ``[B, C, H, W]`` each; and the final features in front, unless
        ``intermediates_only``. Detectors, and timm's ``FeatureGetterNet``, ask a backbone so; see `intermediates`."""
        found = self.intermediates(x, indices, timesteps, norm=norm, stop_early=stop_early, output_fmt=output_fmt)
        last = [part[-1] for part in found]
        return last if intermediates_only else (self.forward_features(x, timesteps)[-1], last)

    @property
    def feature_info(self) -> Any:
        """Where features can be taken, as timm lists it."""
        return self.network.feature_info

    def _check_all_speak(self, last: str | None) -> None:
        """Refuse features that depend on neurons that calibration has silenced, since the network's output does not.

        Args:
            last: the module behind which features are taken; None for all but the head.
        """
        before = list(self.neurons().items())
        if last is not None:
            before = before[: max((i + 1 for i, (name, _) in enumerate(before) if name.startswith(f"{last}.")), default=0)]
        for name, neuron in before:
            if bool(torch.isinf(neuron.silence).any()):
                raise ModelError(
                    f"{name!r} has neurons that never fire: the output that was converted does not depend on them (as on the "
                    "patch tokens behind the last attention, where a class token is read), and these features do",
                    "convert the ANN after model.reset_classifier(0, global_pool=''): all tokens are its output then",
                )

    def _of_timm(self, method: str) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(self.network, method, None)
        if found is None:
            raise ModelError(f"the ANN is a {type(self.network).__name__}, which has no {method}", "take the model of timm")
        return found

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
            if self.synchronous:
                raise ModelError(
                    f"a network of schedule {self.recipe.coded.schedule!r} has no early exits: its layers wait for each other",
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
        """The logits ``[B, classes]`` of what spikes approach where this is not the ANN: with substitutes, or with weights of
        integers. None where it is, or where something was fitted through spikes, and means nothing without them."""
        recipe = self.recipe
        through_spikes = recipe.spike_driven or recipe.coded.refit_passes > 0
        if through_spikes or not (recipe.structure.replaces or recipe.weight_bits):
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
        """See `vit2snn.spiking.SpikingNetwork`."""
        return self.recipe.synchronous or self.recipe.lag > 0

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
