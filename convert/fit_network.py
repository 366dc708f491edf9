"""The whole of a network with substitutes, fitted to its ANN: logits, features and streams, on random views of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..finetune import Precision, Step, Workspace, train
from ..tracing import catching, outputs_of
from ..tracing.calls import tensors_in
from .fit_branches import BATCH, settings
from .inputs import Batches, unlabelled
from .lines import prefix_of
from .substitution import is_new_parameter
from .views import random_views

RATE, INHERITED = 5e-4, 0.2
"""Of new parameters, and the fraction of it at which all others learn."""
TEMPERATURE = 2.0
FEATURES, STREAMS = 2.0, 0.2
"""Weights of the last features and of each block's stream beside that of the logits."""


def fit_network(
    network: nn.Module, ann: nn.Module, blocks: Sequence[str], images: Tensor | Batches, passes: int, seed: int,
    precision: Precision, workspace: Workspace | None, report: Callable[[Step], None],
) -> None:  # fmt: skip
    """Fit all parameters of ``network``, in place.

    Args:
        network: with substitutes that are fitted one by one.
        ann: what it was made of, in evaluation mode.
        blocks: of both, by name.
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
        network, batches, settings(RATE, updates, len(batches), seed, precision), objective=Likeness(ann, blocks),
        lr_scale=lambda name: 1.0 if is_new_parameter(network, name) else INHERITED, workspace=workspace, report=report,
        statistics=False,
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
        blocks: by name.
    """

    def __init__(self, ann: nn.Module, blocks: Sequence[str]) -> None:
        self.ann = ann
        self.blocks = blocks[:-1]
        self.prefix = prefix_of(ann)
        self.head = classifier_of(ann)

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms, of images ``[B, C, H, W]``; labels are not looked at."""
        views = random_views(x)
        with torch.no_grad(), outputs_of(self.ann, self.blocks) as wanted:
            target_features, target = self._read(self.ann, views)
        model.eval()  # drop nothing out: the ANN does not either
        with outputs_of(model, self.blocks) as found:
            features, logits = self._read(model, views)
        pairs = [
            pair for name in self.blocks for pair in zip(tensors_in([found[name]]), tensors_in([wanted[name]]), strict=True)
        ]
        streams = torch.stack([self._error(ours, theirs) for ours, theirs in pairs] or [logits.new_zeros(())]).sum()
        return {
            "logits": _soft(logits, target) if self.head else relative(logits, target),
            "features": FEATURES * relative(features, target_features),
            "streams": STREAMS * streams,
        }

    def _read(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads, and what comes out: the same where there is no head."""
        if not self.head:
            logits = model(images)
            return logits, logits
        with catching(model.get_submodule(self.head)) as caught:
            logits = model(images)
        return caught[0], logits

    def _error(self, found: Tensor, wanted: Tensor) -> Tensor:
        if not self.prefix or found.ndim != 3:
            return relative(found, wanted)
        before = relative(found[:, : self.prefix], wanted[:, : self.prefix])
        return before + relative(found[:, self.prefix :], wanted[:, self.prefix :])


def classifier_of(model: nn.Module) -> str:
    """The name of the layer that makes logits of features, as timm's models tell it; empty of a model without one."""
    tell = getattr(model, "get_classifier", None)
    head = tell() if callable(tell) else None
    if not isinstance(head, (nn.Linear, nn.Conv2d)):
        return ""
    return next((name for name, module in model.named_modules() if module is head), "")


def _soft(logits: Tensor, target: Tensor) -> Tensor:
    student, teacher = (F.log_softmax(z.float() / TEMPERATURE, -1) for z in (logits, target))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2


def relative(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error over the variance of what is wanted."""
    wanted = wanted.float()
    variance = wanted.var() if wanted.numel() > 1 else wanted.new_ones(())
    return (found.float() - wanted).square().mean() / variance.clamp(min=torch.finfo(torch.float32).tiny)
