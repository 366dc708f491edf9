"""What an evaluation finds: the curve, early exits, what errs, what it costs, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from .against import Contest
from .audit import Audit
from .cost import Costs
from .diagnosis import ModuleError
from .outputs import Output


@dataclass(frozen=True)
class Point:
    """The network read after ``timestep`` timesteps.

    Attributes:
        timestep: 1 for the first.
        top1: accuracy in per cent; of features, the share of images whose nearest other image, by cosine, is of their class.
            None of numbers, and without labels.
        agreement: share of images with the same top-1 class as the ANN or, of features, with the same nearest other image, in
            per cent; None of numbers, and where there is no ANN.
        relative_error: ‖snn - ann‖ / ‖ann‖ of the logits, over all images; None where there is no ANN.
        spikes_per_neuron: spikes that a neuron has sent so far, mean over neurons and images; an integer counts as so many.
        operations: accumulates and multiply-accumulates so far for an image, relative to the multiply-accumulates of the
            synaptic operations of the ANN or, where there is none, of the network's own layers in one pass on numbers.
        energy: of these, relative to that (see `vit2snn.measure.energy`).
        latency: timesteps from the image to this readout: more than ``timestep`` if layers take their timesteps one after the
            other.
        similarity: cosine of the features and the ANN's, mean over the images; of numbers, their correlation with the ANN's.
            None of classes, and where there is no ANN.
        mean_error: of numbers, the mean absolute difference from the labels; None of all else, and without labels.
    """

    timestep: int
    top1: float | None
    agreement: float | None
    relative_error: float | None
    spikes_per_neuron: float
    operations: float
    energy: float
    latency: int
    similarity: float | None = None
    mean_error: float | None = None

    @property
    def score(self) -> float:
        """How good it is, the higher the better: see `Evaluation.lost`."""
        error = None if self.mean_error is None else -self.mean_error
        return next(figure for figure in (self.top1, error, self.agreement, self.similarity) if figure is not None)

    def to_json(self) -> dict[str, Any]:
        """A dictionary; ``similarity`` and ``mean_error`` are in it where they are known."""
        return {
            name: value for name, value in asdict(self).items() if value is not None or name not in ("similarity", "mean_error")
        }


@dataclass(frozen=True)
class Score:
    """How what does not depend on time compares with the labels; see `Point`."""

    top1: float | None = None
    mean_error: float | None = None

    def to_json(self) -> dict[str, float]:
        """What is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class EarlyExit:
    """The network as an anytime network: each image takes timesteps until the readout is sure enough.

    Attributes:
        confidence: share of the calibration images that were to keep their class.
        limits: how sure the readout has to be after each timestep; null where no image may stop.
        top1: accuracy in per cent.
        agreement: with the ANN, in per cent; None where there is no ANN.
        timesteps: mean over the images.
        energy: mean over the images, relative to what energies of the curve are relative to.
        stopped: share of the images that stop after each timestep, in per cent.
    """

    confidence: float
    limits: tuple[float | None, ...]
    top1: float
    agreement: float | None
    timesteps: float
    energy: float
    stopped: tuple[float, ...]


@dataclass(frozen=True)
class Advice:
    """A finding, and the command or recipe field that acts on it."""

    finding: str
    action: str


@dataclass(frozen=True)
class Evaluation:
    """The accuracy-versus-timestep curve of a network, beside its ANN on the same images where there is one.

    Attributes:
        output: what is scored: ``classes``, ``features`` or ``numbers``.
        images: how many were scored.
        digest: of the set of scored images: the same for the same images, in whatever order.
        calibration: how many images the network was calibrated on, and how many of them were scored.
        ann: of the ANN; None where there is none.
        substitute: of the substitute that spikes approach; None where they approach the ANN itself.
        points: the curve.
        modules: which neuron or block errs (see `diagnose`), worst first; empty where there is no ANN.
        costs: every operation.
        audit: how spike-driven they are, as seen on the first images.
        exit: with early exits, if that was asked for.
        advice: what to do about it, the gravest first.
        contest: with quantised ANNs, if that was asked for.
    """

    output: Output
    images: int
    digest: str
    calibration: dict[str, int]
    ann: Score | None
    substitute: Score | None
    points: tuple[Point, ...]
    modules: list[ModuleError]
    costs: Costs
    audit: Audit
    exit: EarlyExit | None = None
    advice: tuple[Advice, ...] = ()
    contest: Contest | None = None

    @property
    def ann_top1(self) -> float | None:
        """Accuracy of the ANN in per cent; None where there is no ANN, or it has none."""
        return self.ann.top1 if self.ann else None

    @property
    def substitute_top1(self) -> float | None:
        """Accuracy of the substitute in per cent; None where there is no substitute, or it has none."""
        return self.substitute.top1 if self.substitute else None

    def lost(self, point: Point) -> float:
        """What a point loses against the ANN: points of ``top1`` or, of numbers, so much more ``mean_error``.

        Without labels it is what ``agreement`` lacks of 100 or, of numbers, ``similarity`` of 1.

        Raises:
            ValueError: there is no ANN.
        """
        if self.ann is None:
            raise ValueError("there is no ANN to compare with")
        if self.ann.top1 is not None:
            return self.ann.top1 - point.score
        if self.ann.mean_error is not None:
            return -self.ann.mean_error - point.score
        return (1 if self.output == "numbers" else 100) - point.score

    def recommended(self, max_drop: float | None = None, max_energy: float | None = None) -> Point | None:
        """The point to take within a budget; None if there is none.

        Args:
            max_drop: what may be lost against the ANN (see `lost`): then the earliest point is taken.
            max_energy: relative to the ANN's: without ``max_drop``, the best point is taken.

        Raises:
            ValueError: a drop is given, and there is no ANN.
        """
        within = [p for p in self.points if max_energy is None or p.energy <= max_energy]
        if max_drop is None:
            return max(within, key=lambda p: (p.score, -p.timestep), default=None)
        return next((p for p in within if self.lost(p) <= max_drop), None)

    def to_json(self) -> dict[str, Any]:
        """The document that ``vit2snn evaluate --json`` prints."""
        return {
            "output": self.output,
            "images": self.images,
            "digest": self.digest,
            "calibration": self.calibration,
            "ann": self.ann.to_json() if self.ann else None,
            "substitute": self.substitute.to_json() if self.substitute else None,
            "snn": [point.to_json() for point in self.points],
            "exit": asdict(self.exit) if self.exit else None,
            "contest": self.contest.to_json() if self.contest else None,
            "advice": [asdict(advice) for advice in self.advice],
            "modules": [asdict(module) for module in self.modules],
            "audit": self.audit.to_json(),
            "costs": self.costs.to_json(),
        }


@runtime_checkable
class Substituting(Protocol):
    """A network whose spikes may approach a substitute of its ANN."""

    def exact(self, x: Tensor) -> Tensor | None:
        """The substitute's logits ``[B, classes]`` for images ``[B, C, H, W]``; None where spikes approach the ANN itself."""


@runtime_checkable
class Advising(Protocol):
    """A network that knows how it was made, and so what could be made better."""

    def advice(self, evaluation: Evaluation) -> Sequence[Advice]:
        """What to do about what was measured, the gravest first."""
