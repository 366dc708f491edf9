"""Models from the authors' own checkpoints."""

from __future__ import annotations

import inspect
import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ModelError, Vit2SnnError
from ..spiking import ConvBN, Neuron, SpikingProjection
from .layouts import LAYOUTS, Layout, Source
from .names import Arguments
from .network import SpikingTransformer
from .registry import VARIANTS, Variant

logger = logging.getLogger(__name__)

WITHOUT_EFFECT = re.compile(
    r"(img|patch)_size.*|depths|mlp_ratios?|qkv_bias|qk_scale|.*drop.*|norm_layer|sr_ratios?|pretrained.*|attn_mode|get_embed|TET|cml|"
    r"if_UCF|encode_type|embed_layer|attn_layer|num_expert|expert_dim|expert_mode|no_weight_decay|num_heads|T|step|layer"
)
"""Keys of the authors' configurations that no forward pass reads, or that the weights tell better."""


class Fit:
    """How a checkpoint fits a model: which of its tensors become which of ours, and what is left over.

    Attributes:
        tensors: for each of our keys, the checkpoint's keys that are put one after another.
        problems: what does not fit, a sentence each, in the order of the checkpoint.
    """

    def __init__(self, model: nn.Module, layout: Layout, arguments: Arguments, weights: Mapping[str, Tensor]) -> None:
        self.tensors: dict[str, list[str]] = defaultdict(list)
        self._thresholds: dict[str, float] = {}
        for ours, theirs in [*layout.names(arguments), ("head", "head")]:
            for mine, name in self._pairs(model, layout, ours, theirs):
                module = model.get_submodule(mine)
                for key in module.state_dict():
                    self.tensors[f"{mine}.{key}"].append(f"{name}.{key}")
                if isinstance(module, Neuron):
                    self._thresholds[f"{name}.threshold"] = float(module.threshold)  # type: ignore[arg-type]
        self.problems = list(self._problems(model, layout, weights))

    @staticmethod
    def _pairs(model: nn.Module, layout: Layout, ours: str, theirs: str) -> list[tuple[str, str]]:
        """The modules with parameters or a threshold below ``ours``, and the authors' for each."""
        if "{}" not in theirs:
            return [(ours, theirs)]
        module = model.get_submodule(ours)
        projection = f"{ours}.project" if isinstance(module, SpikingProjection) else ours
        convolution = model.get_submodule(projection)
        assert isinstance(convolution, ConvBN)
        kind = layout.linear if convolution.conv.kernel_size == (1, 1) else "conv"
        pairs = [(f"{projection}.conv", theirs.format(kind)), (f"{projection}.bn", theirs.format("bn"))]
        return pairs + ([(f"{ours}.neuron", theirs.format("lif"))] if isinstance(module, SpikingProjection) else [])

    def _problems(self, model: nn.Module, layout: Layout, weights: Mapping[str, Tensor]) -> Any:
        expected = {name for names in self.tensors.values() for name in names}
        unused = re.compile("|".join(layout.unused) or r"(?!)")
        for key, value in weights.items():
            if key in self._thresholds:
                if abs(float(value) - self._thresholds[key]) > 1e-6:
                    yield f"{key} is {float(value):g}, this layout has {self._thresholds[key]:g}"
            elif key not in expected and not unused.fullmatch(key):
                yield f"{key} is not in this layout"
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        for key, names in self.tensors.items():
            missing = [name for name in names if name not in weights]
            yield from (f"{name} is missing" for name in missing)
            if not missing and (wrong := self._misshapen(key, names, shapes[key], layout, weights)):
                yield wrong
        yield from (f"our {key} has no counterpart" for key in shapes if key not in self.tensors)

    def _misshapen(
        self, key: str, names: list[str], shape: torch.Size, layout: Layout, weights: Mapping[str, Tensor]
    ) -> str | None:
        """What is wrong with the shape of the tensors for ``key``; 1x1 convolutions may be linear, or of fewer dimensions."""
        found = weights[names[0]].shape
        given = torch.Size([sum(weights[name].shape[0] for name in names), *found[1:]]) if found else found
        kernel = len(shape) == 4 and shape[2:] == (1, 1)
        part = ("attention" in key, "mlp" in key)
        if kernel and any(part) and len(given) != layout.dimensions[part.index(True)]:
            return f"{names[0]} has shape {tuple(given)}, this layout {layout.dimensions[part.index(True)]} dimensions"
        if given == shape or (kernel and tuple(given) + (1,) * (4 - len(given)) == tuple(shape)):
            return None
        return f"{names[0]} has shape {tuple(given)}, the model {tuple(shape)}"

    def load(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Copy the checkpoint's tensors into the model."""
        own = model.state_dict()
        for key, names in self.tensors.items():
            parts = [weights[name] for name in names]
            value = torch.cat(parts) if parts[0].ndim else parts[0]
            own[key].copy_(value.reshape(own[key].shape))


def from_official(
    layout: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor], batch_leak: bool = False
) -> SpikingTransformer:
    """A zoo model from an authors' checkpoint.

    Loading is strict: every tensor must have its place, but for parameters that the published code makes and never uses
    (LayerNorms, position embeddings, the steepness of BrainCog's surrogates). Thresholds that BrainCog keeps in the checkpoint
    are kept.

    Args:
        layout: a key of ``vit2snn.zoo.LAYOUTS``, which names a code base.
        config: the authors' arguments, under their names; what the weights tell may be left out. The number of heads,
            T, SDT's ``pooling_stat`` and ``dvs_mode`` and TIM's ``TIM_alpha`` and image size are read from it, and have the
            authors' defaults. T of event layouts is that of the frames unless given.
        state_dict: the authors' tensors, as in their checkpoint.
        batch_leak: let QKFormer's last attention neuron run over the images of a batch too, as the published code does.

    Returns:
        The model in evaluation mode. Event frames are ``[T, B, C, H, W]``, time first; the authors' ``[B, T, C, H, W]``.

    Raises:
        ModelError: there is no such layout, or it has no batch leak.
        CheckpointError: the tensors do not fit the layout (the message names three, and the layout that would fit), or
            contradict the configuration.
    """
    if layout not in LAYOUTS:
        raise ModelError(f"there is no layout {layout!r}", f"choose one of {', '.join(LAYOUTS)}")
    if batch_leak and not layout.startswith("qkformer"):
        raise ModelError(f"the layout {layout!r} has no batch leak", "only the published code of QKFormer has it")
    weights = {key.removeprefix("module."): value for key, value in state_dict.items()}
    chosen, source = LAYOUTS[layout], Source(config, weights)
    try:
        arguments = chosen.arguments(source)
    except KeyError:
        others = _defaults(VARIANTS[chosen.variant])
        raise _does_not_fit(layout, _fit(chosen, others, weights).problems, weights) from None
    fit = _fit(chosen, arguments, weights)
    if fit.problems:
        raise _does_not_fit(layout, fit.problems, weights)
    extra = [key for key in config if key not in source.used and not WITHOUT_EFFECT.fullmatch(key)]
    if extra:
        logger.warning("entries of the configuration without effect: %s", ", ".join(extra))
    model: SpikingTransformer = timm.create_model(chosen.variant, **arguments, **({"batch_leak": True} if batch_leak else {}))
    fit.load(model, weights)
    return model.eval()


def _defaults(variant: Variant) -> Arguments:
    """All arguments of a registered variant."""
    signature = inspect.signature(variant.architecture).parameters
    return {name: parameter.default for name, parameter in signature.items()} | dict(variant.arguments)


def _fit(layout: Layout, arguments: Arguments, weights: Mapping[str, Tensor]) -> Fit:
    # The number of heads leaves no trace in the weights, and one that does not divide the width is not the weights' fault.
    heads = arguments.get("num_heads", 1)
    one = {"num_heads": 1 if isinstance(heads, int) else [1] * len(heads)} if "num_heads" in arguments else {}
    with torch.device("meta"):
        model = VARIANTS[layout.variant].architecture(**arguments | one)
    return Fit(model, layout, arguments, weights)


def _fits(layout: Layout, weights: Mapping[str, Tensor]) -> bool:
    try:
        return not _fit(layout, layout.arguments(Source({}, weights)), weights).problems
    except (KeyError, IndexError, ValueError, ZeroDivisionError, Vit2SnnError):
        return False


def _does_not_fit(layout: str, problems: list[str], weights: Mapping[str, Tensor]) -> CheckpointError:
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    others = [name for name, other in LAYOUTS.items() if name != layout and _fits(other, weights)]
    hint = f"the layout that fits is {' or '.join(others)}" if others else "no layout of vit2snn fits this checkpoint"
    return CheckpointError(f"the checkpoint does not fit the layout {layout!r}: {'; '.join(problems[:3])}{more}", hint)
