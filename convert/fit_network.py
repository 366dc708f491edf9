"""The whole of a network with substitutes, fitted to its ANN: logits, features and streams, on random views of the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ..finetune import Precision, Step, Workspace, train
from ..tracing import catching, outputs_of
from .fit_branches import BATCH, settings
from .inputs import Batches, unlabelled
from .substitution import is_new_parameter
from .views import random_views

RATE, INHERITED = 5e-4, 0.2
"""Of new parameters, and the fraction of it at which all others learn."""
TEMPERATURE = 2.0
FEATURES, STREAMS = 2.0, 0.2
"""Weights of the last features and of each block's stream beside that of the logits."""


def fit_network(
    network: VisionTransformer, ann: VisionTransformer, images: Tensor | Batches, passes: int, seed: int, precision: Precision,
    workspace: Workspace | None, report: Callable[[Step], None],
) -> None:  # fmt: skip
    """Fit all parameters of ``network``, in place.

    Args:
        network: with substitutes that are fitted one by one.
        ann: what it was made of, in evaluation mode.
        images: ``[B, C, H, W]``, which are shuffled; or batches, in which they stay.
        passes: over the images.
        seed: of their order and their views.
        precision: of the forward passes.
        workspace: where checkpoints go; None for none.
        report: called after each update, in the main process.
    """
    batches = unlabelled(images, BATCH, seed)
    updates = passes * len(batches)
    train(
        network, batches, settings(RATE, updates, len(batches), seed, precision), objective=Likeness(ann),
        lr_scale=lambda name: 1.0 if is_new_parameter(network, name) else INHERITED, workspace=workspace, report=report,
    )  # fmt: skip


class Likeness:
    """How far a network is from its ANN on the same random view of an image; terms of a loss.

    * ``logits``: KL divergence of the class probabilities at a temperature τ = 2, times τ² (Hinton et al., 2015); where the
      network ends in features, their squared error over their variance.
    * ``features``: the squared error of what the head reads, over its variance.
    * ``streams``: the same of the output of each block but the last, for the patches and for the tokens before them, each over
      its own variance; the sum over blocks.

    Args:
        ann: the teacher, in evaluation mode.
    """

    def __init__(self, ann: VisionTransformer) -> None:
        self.ann = ann
        self.blocks = [f"blocks.{index}" for index in range(len(ann.blocks) - 1)]
        self.prefix = ann.num_prefix_tokens

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms, of images ``[B, C, H, W]``; labels are not looked at."""
        views = random_views(x)
        with torch.no_grad(), outputs_of(self.ann, self.blocks) as wanted:
            target_features, target = _read(self.ann, views)
        model.eval()  # drop nothing out: the ANN does not either
        with outputs_of(model, self.blocks) as found:
            features, logits = _read(model, views)
        return {
            "logits": _soft(logits, target) if isinstance(self.ann.head, nn.Linear) else relative(logits, target),
            "features": FEATURES * relative(features, target_features),
            "streams": STREAMS
            * torch.stack([self._error(found[name], wanted[name]) for name in self.blocks] or [logits.new_zeros(())]).sum(),
        }

    def _error(self, found: Tensor, wanted: Tensor) -> Tensor:
        if not self.prefix:
            return relative(found, wanted)
        before = relative(found[:, : self.prefix], wanted[:, : self.prefix])
        return before + relative(found[:, self.prefix :], wanted[:, self.prefix :])


def _read(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the head reads, and what comes out."""
    with catching(model.head) as caught:
        logits = model(images)
    return caught[0], logits


def _soft(logits: Tensor, target: Tensor) -> Tensor:
    student, teacher = (F.log_softmax(z.float() / TEMPERATURE, -1) for z in (logits, target))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2


def relative(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error over the variance of what is wanted."""
    wanted = wanted.float()
    variance = wanted.var() if wanted.numel() > 1 else wanted.new_ones(())
    return (found.float() - wanted).square().mean() / variance.clamp(min=torch.finfo(torch.float32).tiny)
