"""What is minimised: named terms, which the loop adds up."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError, ModelError
from ..tracing import outputs_of

Objective = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Tensor]]
"""Model, inputs and labels to the terms of the loss, scalars, by name. A term is a mean over images."""
TERMS = ("labels", "soft", "features")
"""The terms of `Distillation`."""


def classification(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the logits after all timesteps with ``labels``, ``[B]``, or probabilities ``[B, classes]``.

    Raises:
        DataError: a label is none of the model's classes.
    """
    return {"labels": _label_loss(_final(model(x)), labels, 0.0)}


class Distillation:
    """A mix of labels and of what an ANN knows, each a term with a weight.

    * ``labels``: cross-entropy of the logits after all timesteps.
    * ``soft``: KL divergence from the teacher's class probabilities, both at a temperature τ, times τ² so that gradients do not
      shrink with it (Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015).
    * ``features``: for each block, the squared error between its output, averaged over the timesteps, and that of the teacher's
      block of the same name, relative to the mean square of the latter; mean over images and blocks.

    Args:
        weights: of the terms, by name; those left out are not computed. Without ``labels``, labels are not looked at.
        teacher: the ANN, in evaluation mode, on the device of the model; it sees the student's inputs.
        temperature: τ.
        label_smoothing: 0..1, of ``labels``.

    Raises:
        ValueError: a term is unknown, a weight, the temperature or the smoothing out of range, or a teacher is missing.
    """

    def __init__(
        self, weights: Mapping[str, float], teacher: nn.Module | None = None, temperature: float = 2.0,
        label_smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        for name, weight in weights.items():
            if name not in TERMS:
                raise ValueError(f"there is no loss {name!r}; choose of {', '.join(TERMS)}")
            if not 0 < weight < float("inf"):
                raise ValueError(f"the weight of the loss {name!r} must be positive, got {weight}")
        if not weights or not temperature > 0 or not 0 <= label_smoothing < 1:
            raise ValueError(
                f"a loss has at least one term, a positive temperature, and a label smoothing below 1, got terms "
                f"{list(weights)}, temperature {temperature}, smoothing {label_smoothing}"
            )
        if teacher is None and set(weights) != {"labels"}:
            raise ValueError(f"the losses {', '.join(set(weights) - {'labels'})} need a teacher")
        self.weights, self.teacher = dict(weights), teacher
        self.temperature, self.label_smoothing = temperature, label_smoothing

    def __call__(self, model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of one batch, times their weights.

        Raises:
            DataError: a label is none of the model's classes.
            ModelError: the teacher has other classes, or blocks that the model does not have.
        """
        terms = {}
        inner = getattr(model, "network", None)  # a converted model's, whose blocks bear the names of the teacher's
        network = inner if isinstance(inner, nn.Module) else model
        blocks = self._blocks(network) if "features" in self.weights else []
        with outputs_of(network, blocks) as found:
            logits = _final(model(x))
        if "labels" in self.weights:
            terms["labels"] = _label_loss(logits, labels, self.label_smoothing)
        if self.teacher is not None and len(self.weights) > len(terms):
            with torch.no_grad(), outputs_of(self.teacher, blocks) as wanted:
                target = self.teacher(x)
            if "soft" in self.weights:
                terms["soft"] = _soft_loss(logits, target, self.temperature)
            if "features" in self.weights:
                errors = [_feature_loss(name, found[name], wanted[name], x.shape[-4]) for name in blocks]
                terms["features"] = torch.stack(errors).mean()
        return {name: self.weights[name] * term for name, term in terms.items()}

    def _blocks(self, network: nn.Module) -> list[str]:
        assert self.teacher is not None
        names = [name for name, _ in self.teacher.named_modules() if re.search(r"(^|\.)blocks\.\d+$", name)]
        present = {name for name, _ in network.named_modules()}
        if not names or not present.issuperset(names):
            raise ModelError(
                f"features are compared block by block: the teacher has {names or 'no blocks'}, and the model not the same",
                "leave features out of --loss, or take the ANN that was converted as the teacher",
            )
        return names


def _final(readout: Tensor) -> Tensor:
    """The logits after all timesteps, of a converted model's ``[T, B, classes]`` or a zoo model's ``[B, classes]``."""
    return readout[-1] if readout.ndim == 3 else readout


def _label_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    classes = logits.shape[-1]
    if labels.ndim == 1 and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"labels from {int(labels.min())} to {int(labels.max())} for a model of {classes} classes",
            "check that model and data set belong together; images without labels need --loss soft=1 or features=1",
        )
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def _soft_loss(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    if logits.shape != target.shape:
        raise ModelError(
            f"the teacher has {target.shape[-1]} classes, the model {logits.shape[-1]}", "take a teacher of the same classes"
        )
    student, teacher = (F.log_softmax(z.float() / temperature, -1) for z in (logits, target))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _feature_loss(name: str, found: Tensor, wanted: Tensor, images: int) -> Tensor:
    mean = found.float().unflatten(0, (-1, images)).mean(0)
    if mean.shape != wanted.shape:
        raise ModelError(
            f"{name} of the model gives {tuple(mean.shape)}, that of the teacher {tuple(wanted.shape)}",
            "leave features out of --loss, or take the ANN that was converted as the teacher",
        )
    # Relative image by image, so that it does not matter how images are spread over batches and processes.
    error, scale = (x.flatten(1).square().mean(1) for x in (mean - wanted, wanted.float()))
    return (error / scale.clamp(min=torch.finfo(scale.dtype).tiny)).mean()
