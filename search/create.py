"""Models of architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm

from ..errors import ModelError
from ..zoo import QKFormer, SpikingTransformer
from ..zoo.frames import Frame
from ..zoo.registry import cifar, dvs, imagenet
from .space import Task

VARIANT = "autost_4_384_cifar100"  # whose class takes all the arguments


def create(arguments: Mapping[str, Any], task: Task) -> SpikingTransformer:
    """A timm model with random weights and the preprocessing of its task.

    Args:
        arguments: of `vit2snn.zoo.AutoST`, as `vit2snn.search.arguments` makes them of an architecture.
        task: the images that it is for.

    Raises:
        ModelError: they are not arguments of a model.
    """
    cfgs = {"imagenet": imagenet(task.size), "cifar": cifar(task.num_classes), "dvs": dvs(task.size, task.num_classes)}
    overlay = cfgs[task.stem] | {"num_classes": task.num_classes, "input_size": (task.in_chans, task.size, task.size)}
    if Frame.find(arguments.get("frame", "autost")).hierarchical:
        overlay["first_conv"] = QKFormer.first_conv
    try:
        model: SpikingTransformer = timm.create_model(VARIANT, pretrained_cfg_overlay=overlay, **arguments)
    except (TypeError, ValueError) as error:
        raise ModelError(f"no model can be made with {arguments}: {error}", "search again") from error
    return model
