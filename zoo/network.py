"""What all spiking transformers of the zoo share: stages, time, the readout, and the face that timm users expect."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import DataError, ModelError
from ..spiking import NEURONS, Neuron, NeuronFactory, running_mean, simulate, stream


class Stage(nn.Module):
    """A patch embedding and the blocks behind it.

    Args:
        embed: maps ``[T * B, C', H', W']`` to ``[T * B, dim, H, W]``.
        blocks: of ``[T * B, dim, H, W]``.
        dim: channels.
        reduction: stride of the embedding.
    """

    def __init__(self, embed: nn.Module, blocks: Iterable[nn.Module], dim: int, reduction: int) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.Sequential(*blocks)
        self.dim = dim
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        """Embed, then all blocks."""
        tokens: Tensor = self.blocks(self.embed(x))
        return tokens


def block(attention: nn.Module, mlp: nn.Module) -> nn.Module:
    """A block of a transformer: attention, then the perceptron, each within its shortcut."""
    return nn.Sequential(OrderedDict(attention=attention, mlp=mlp))


class SpikingTransformer(nn.Module):
    """Stages of spiking blocks, the mean over tokens, and a linear head whose outputs are averaged over the timesteps.

    Input: static images ``[B, in_chans, H, W]``, shown at all ``timesteps``, or frames of events ``[T, B, in_chans, H, W]``,
    time first. Every call starts from rest; the logits of an image depend neither on its batch mates nor, at timestep t, on
    what comes later. Subclasses build the stages.

    Args:
        stages: in order.
        num_classes: outputs; 0 gives the pooled features.
        in_chans: channels of the input.
        timesteps: T; 0 takes it from the frames of each input.
        head_neuron: a neuron between the mean over tokens and the head.
    """

    first_conv = "stages.0.embed.layers.0.project.conv"
    """The convolution that sees the image, as timm's pretrained configurations name it."""

    # What else a `vit2snn.spiking.SpikingNetwork` is asked: it was trained as it is, and there is no ANN beside it.
    synchronous = False
    averages = True
    channels_last = True
    reference: nn.Module | None = None
    compared: Mapping[str, str] = MappingProxyType({})
    calibrated_on: tuple[str, ...] = ()

    def __init__(
        self, stages: Sequence[Stage], num_classes: int, in_chans: int, timesteps: int, head_neuron: Neuron | None = None
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.timesteps = timesteps
        self.num_features = self.head_hidden_size = stages[-1].dim
        self.head_neuron = head_neuron or nn.Identity()
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes)
        self.feature_info = list(self._feature_points())

    @property
    def network(self) -> nn.Module:
        """The module tree that computes: this one."""
        return self

    @property
    def stride(self) -> int:
        """Pixels of the image to a token of the last stage, along one axis."""
        return int(self.feature_info[-1]["reduction"])

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` after all timesteps.

        Raises:
            DataError: the input has other channels or timesteps, or a size that the stride does not divide.
        """
        return self.readout(x)[-1]

    def readout(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Tensor:
        """The logits that can be read after each timestep: the mean of those so far, ``[T, B, num_classes]``.

        Args:
            x: as for `forward`.
            timesteps: T; the model's unless given. A shorter run is the beginning of a longer one.
            chunk: timesteps computed at once; memory grows with it, the result does not depend on it.

        Raises:
            DataError: as for `forward`.
        """
        return torch.cat(list(self.stream(x, timesteps, chunk)))

    def stream(self, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Iterator[Tensor]:
        """The same chunk by chunk, ``[chunk, B, num_classes]``; whoever has seen enough may stop."""
        steps = self._check_input(x, timesteps)
        return running_mean(stream(self.respond, x, steps, chunk, still=True))

    def respond(self, frames: Tensor) -> Tensor:
        """See `vit2snn.spiking.SpikingNetwork`."""
        return self._classify(self._stages(frames))

    def ann(self, x: Tensor) -> Tensor | None:
        """None: there is no ANN that it came from."""
        return None

    def exit_limits(self, confidence: float) -> Tensor:
        """Refused.

        Raises:
            ModelError: always.
        """
        raise ModelError("a model of the zoo has no calibration of early exits", "convert an ANN to have one")

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps of tokens after the last stage, ``[T, B, C, H, W]``."""
        return self._simulate(self._stages, x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps of tokens ``[T, B, C, H, W]`` to logits ``[B, num_classes]``, or to the head's input ``[B, C]``."""
        head = self._pool if pre_logits else self._classify
        return simulate(head, x, len(x)).mean(0)

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any:  # fmt: skip
        """Features at the points of ``feature_info``, averaged over the timesteps: ``[B, C, H, W]`` each.

        Args:
            x: as for `forward`.
            indices: which points; all if None, the last n for an int.
            norm: there is no final norm; accepted for timm.
            stop_early: leave out what comes after the last of them.
            output_fmt: only ``"NCHW"``.
            intermediates_only: return the list alone, and not the final features as well.

        Raises:
            ValueError: another output format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"features of a spiking transformer are maps: output_fmt is NCHW, got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        stop = last + 1 if stop_early else len(self.feature_info)

        def points(frames: Tensor) -> Iterator[Tensor]:
            for index, layer in enumerate(self._layers()[:stop]):
                frames = layer(frames)
                if index in taken or index == stop - 1:
                    yield frames

        kept: list[Tensor] = []

        def collect(frames: Tensor) -> Tensor:
            kept.extend(points(frames))
            return kept[-1]

        steps = self._check_input(x)
        self._simulate(collect, x)
        means = [tensor.unflatten(0, (steps, -1)).mean(0) for tensor in kept]
        intermediates = means if stop - 1 in taken else means[:-1]
        return intermediates if intermediates_only else (means[-1], intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what is not needed for the features at ``indices``; timm's ``features_only`` calls it."""
        taken: list[int]
        taken, last = feature_take_indices(len(self.feature_info), indices)
        if len(self.stages) == 1:
            stage = self._only_stage()
            stage.blocks = stage.blocks[: last + 1]
        else:
            self.stages = self.stages[: last + 1]
        self.feature_info = self.feature_info[: last + 1]
        if prune_head:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head; 0 classes for none. The pooling is always the mean over tokens."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def _only_stage(self) -> Stage:
        stage = self.stages[0]
        assert isinstance(stage, Stage)
        return stage

    def _layers(self) -> list[nn.Module]:
        """The layers behind which features can be taken: stages, or the blocks of an only stage."""
        if len(self.stages) > 1:
            return list(self.stages)
        stage = self._only_stage()
        first, *rest = stage.blocks
        return [nn.Sequential(stage.embed, first), *rest]

    def _feature_points(self) -> Iterator[dict[str, Any]]:
        reduction = 1
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            reduction *= stage.reduction
            names = [f"stages.{i}"]
            if len(self.stages) == 1:
                names = [f"stages.0.blocks.{j}" for j in range(len(stage.blocks))]
            for name in names:
                yield {"num_chs": stage.dim, "reduction": reduction, "module": name}

    def _stages(self, frames: Tensor) -> Tensor:
        for stage in self.stages:
            frames = stage(frames)
        return frames

    def _pool(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.head_neuron(tokens.mean((2, 3)))
        return pooled

    def _classify(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self._pool(tokens))
        return logits

    def _simulate(self, network: Any, x: Tensor, timesteps: int | None = None, chunk: int | None = None) -> Tensor:
        return simulate(network, x, self._check_input(x, timesteps), chunk, still=True)

    def _check_input(self, x: Tensor, timesteps: int | None = None) -> int:
        """The number of timesteps of this run, if the input can be run at all."""
        if x.ndim not in (4, 5):
            raise DataError(
                f"a spiking transformer takes images [B, {self.in_chans}, H, W] or frames [T, B, {self.in_chans}, H, W], "
                f"got shape {tuple(x.shape)}"
            )
        if x.shape[-3] != self.in_chans:
            raise DataError(
                f"the model takes {self.in_chans} channels, got {x.shape[-3]} in an input of shape {tuple(x.shape)}",
                f"create the model with in_chans={x.shape[-3]}",
            )
        timesteps = timesteps or self.timesteps or (len(x) if x.ndim == 5 else 0)
        if not timesteps:
            raise DataError(
                f"this model takes its timesteps from frames [T, B, {self.in_chans}, H, W], got shape {tuple(x.shape)}",
                "give frames, or create the model with timesteps=T",
            )
        if x.ndim == 5 and len(x) != timesteps:
            raise DataError(
                f"the model runs {timesteps} timesteps, got frames for {len(x)}: shape {tuple(x.shape)}",
                f"frames are [T, B, C, H, W], time first; or create the model with timesteps={len(x)}",
            )
        for size in x.shape[-2:]:
            if size % self.stride:
                raise DataError(
                    f"images of {x.shape[-2]}x{x.shape[-1]} are not divisible by the model's stride of {self.stride}",
                    f"resize or pad them to a multiple of {self.stride}",
                )
        return timesteps


def neuron_factory(neuron: str | NeuronFactory) -> NeuronFactory:
    """A neuron by its name in `vit2snn.spiking.NEURONS`, or as it is.

    Raises:
        ModelError: there is no such neuron.
    """
    if not isinstance(neuron, str):
        return neuron
    if neuron not in NEURONS:
        raise ModelError(f"there is no neuron {neuron!r}", f"choose one of {', '.join(NEURONS)}")
    return NEURONS[neuron]
