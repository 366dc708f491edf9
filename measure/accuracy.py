"""Accuracy, agreement, error, spikes and energy at every timestep, and with early exits, in one pass over the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..data import digest
from ..errors import DataError, ModelError
from ..spiking import CodedNeuron, SpikingNetwork, channels_last, evaluating
from ..spiking.shards import alone, collected, processes, smallest
from ..tracing.depth import latencies
from .against import Rival, contest, energies
from .audit import Audit
from .batches import Parts, apart, check_finite, check_labels, check_readout, labelled, set_digest
from .comparison import Classes, Comparison, Exits, Numbers
from .cost import Costs
from .diagnosis import ModuleError, diagnose
from .energy import Dense, energy
from .evaluation import Advising, Evaluation, Substituting
from .features import Features
from .meter import Meter
from .outputs import Output, check_classifier, output_of
from .spending import dense

DIAGNOSED = 8  # images on which the error of every neuron is measured, and all operands are looked at
COMPARISONS: dict[Output, type[Comparison]] = {"classes": Classes, "features": Features, "numbers": Numbers}


def evaluate(
    network: SpikingNetwork,
    batches: Iterable[Any],
    timesteps: int | Sequence[int] | None = None,
    exit_confidence: float | None = None,
    amp_dtype: torch.dtype | None = None,
    shared: bool = True,
    against: Mapping[int, nn.Module] | None = None,
) -> Evaluation:
    """Score a spiking network against labels and against its ANN, if it has one, and count what it does.

    What is scored depends on ``num_classes`` of the module tree (see `vit2snn.measure.outputs.output_of`). Of 0, features are:
    by the cosine with the ANN's, by whether the nearest other image is the ANN's and, with labels, by whether it is of the same
    class; neighbours are sought among the first 10 000 images. Of 1, a number is: by its distance from the label, if there is
    one, and by its correlation with the ANN's.

    All processes of a ``torch.distributed`` group call this, each with its share of the images, and get the figures over all.

    Args:
        network: a converted network, or one of the zoo; it is scored in evaluation mode.
        batches: images ``[B, C, H, W]``, or frames ``[T, B, C, H, W]``, and labels ``[B]``: tuples, lists, or dictionaries (see
            `vit2snn.measure.batches.labelled`), such as a DataLoader gives. Images get the device and type of the weights.
            Labels may be left out where no classes are scored.
        timesteps: T, to report every timestep up to it, or the timesteps to report; the network's T unless given.
        exit_confidence: also score the network with early exits (see `vit2snn.measure.anytime`).
        amp_dtype: bfloat16 or float16, in which the spiking network then computes what ``torch.autocast`` lets it: the analog
            parts between its neurons, whose state stays in float32. The ANN stays in float32, to compare with.
        shared: whether the processes of the group do this together. Otherwise this one scores what it is given by itself.
        against: quantised ANNs to score beside it, by their bits (see `vit2snn.convert.quantised`).

    Batches are cut into parts where memory runs out.

    Raises:
        DataError: there are no images (in one of the processes), batches are not of images and labels, labels are not classes
            of the model, logits are not finite, or features are of one image, or have neither labels nor an ANN.
        ModelError: early exits are asked for, and the network has no calibration of them, or is no classifier; or quantised
            ANNs are, of a network that puts out numbers, or has no ANN.
        ValueError: a timestep is below 1, or the confidence not between 0 and 1.
    """
    with ExitStack() as stack:
        if not shared:
            stack.enter_context(alone())
        stack.enter_context(evaluating(network))
        if network.channels_last:
            stack.enter_context(channels_last(network.network))
        stack.enter_context(torch.inference_mode())
        output = output_of(network)
        remaining = filter(None, (labelled(batch, output) for batch in batches))
        first = next(remaining, None)
        if not int(smallest(torch.tensor(int(first is not None)))) or first is None:
            raise DataError("there are no images to score")
        reported, last = _timesteps(network, first[0], timesteps)
        exits = _exits(network, exit_confidence)
        scoring = _Scoring(network, output, max(last, len(exits.limits) if exits else 0), exits, amp_dtype, against or {})
        parts = Parts()
        for images, labels in chain(apart(first, -(-DIAGNOSED // processes())), remaining):
            parts.run(scoring.add, images, labels)
        found = scoring.evaluation(reported)
    return replace(found, advice=tuple(network.advice(found))) if isinstance(network, Advising) else found


def _exits(network: SpikingNetwork, confidence: float | None) -> Exits | None:
    if confidence is None:
        return None
    check_classifier(network)
    return Exits(network.exit_limits(confidence).to(next(network.network.parameters()).device), confidence)


def _timesteps(network: SpikingNetwork, images: Tensor, asked: int | Sequence[int] | None) -> tuple[Sequence[int], int]:
    """The timesteps to report, and how many are run: of frames, all that there are."""
    frames = len(images) if images.ndim == 5 else 0
    if asked is None:
        asked = network.timesteps or frames
        if not asked:
            raise DataError(
                f"this network takes its timesteps from frames [T, B, C, H, W], got images of shape {tuple(images.shape)}",
                "give frames, or a number of timesteps",
            )
    reported = range(1, asked + 1) if isinstance(asked, int) else sorted(set(asked))
    if not reported or reported[0] < 1:
        raise ValueError(f"timesteps must be at least 1, got {asked}")
    return reported, max(reported[-1], frames)


class _Scoring:
    """One pass over the images: what has been counted and compared so far."""

    def __init__(
        self, network: SpikingNetwork, output: Output, timesteps: int, exits: Exits | None, amp_dtype: torch.dtype | None,
        against: Mapping[int, nn.Module],
    ) -> None:  # fmt: skip
        if against and (output == "numbers" or network.reference is None):
            what = "numbers" if network.reference else "what no ANN stands behind"
            raise ModelError(
                f"quantised ANNs compete on classes or features, and this network puts out {what}", "leave them out"
            )
        self.network = network
        self.output = output
        self.timesteps = timesteps
        self.exits = exits
        self.amp_dtype = amp_dtype
        self.weight = next(network.network.parameters())
        self.meter, self.comparison = Meter(network.network), COMPARISONS[output](timesteps, self.weight.device)
        self.against = {bits: ann.to(self.weight.device) for bits, ann in against.items()}
        self.rivals = {bits: COMPARISONS[output](1, self.weight.device) for bits in against}
        self.chunk = 1 if any(isinstance(module, CodedNeuron) for module in network.network.modules()) else None
        self.input_size: tuple[int, ...] = ()
        self.digests: list[str] = []
        self.modules: list[ModuleError] = []
        self.reference: Dense | None = None

    def add(self, images: Tensor, labels: Tensor) -> None:
        """A batch, or a part of one."""
        x, y = images.to(self.weight, non_blocking=images.is_pinned()), labels.to(self.weight.device)
        ann = self.network.ann(x)
        if ann is not None:
            check_readout(ann)
            self.reference = self.reference or dense(self.network, x)
            self.modules = self.modules or diagnose(self.network, x, self.timesteps)
        exact = self.network.exact(x) if isinstance(self.network, Substituting) else None
        self.meter.observing = not self.comparison.images
        autocast = torch.autocast(y.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)
        with self.meter.undone_on_error(), self.meter, autocast:
            readout = self.network.readout(self.meter.show(x), self.timesteps, self.chunk).float()
        check_readout(readout[-1])
        if self.output == "classes":
            check_labels(labels, readout.shape[-1])
        self.comparison.add(readout, ann, exact, y)
        for bits, rival in self.rivals.items():
            rival.add(self.against[bits](x)[None].float(), ann, None, y)
        if self.meter.observing:  # of the first images at once, and of all others at the end
            check_finite(self.comparison.finite)
        if self.exits:
            self.exits.add(readout, ann, y, energy(self.meter.spent()))
        self.digests += map(digest, images.transpose(0, 1) if images.ndim == 5 else images)
        self.input_size = tuple(images.shape[-3:])

    def evaluation(self, reported: Sequence[int]) -> Evaluation:
        """The figures at these timesteps, over all processes; advice is not among them."""
        network, synchronous = self.network, self.network.synchronous
        self.comparison.join()
        check_finite(self.comparison.finite)
        meter = self.meter
        meter.over_processes()
        costs = Costs.of(meter, self.reference or Dense.of(meter.tallies), synchronous)
        latency = latencies(network.network, self.input_size) if synchronous else int
        scored, known = collected(self.digests), set(network.calibrated_on)
        points = self.comparison.points(reported, costs, latency)
        return Evaluation(
            output=self.output,
            images=self.comparison.images,
            digest=set_digest(scored),
            calibration={"images": len(network.calibrated_on), "scored": len(set(scored) & known)},
            ann=self.comparison.ann,
            substitute=self.comparison.substitute,
            points=points,
            modules=self.modules,
            costs=costs,
            audit=Audit.of(costs, min(DIAGNOSED, self.comparison.images)),
            exit=self.exits.finished(self.comparison.images, costs.ann.energy()) if self.exits else None,
            contest=contest(self._scored_rivals(costs), points, costs, self.comparison.images) if self.rivals else None,
        )

    def _scored_rivals(self, costs: Costs) -> list[Rival]:
        rivals = []
        for bits, comparison in self.rivals.items():
            comparison.join()
            check_finite(comparison.finite)
            (figures,), (error,) = comparison.figures(), comparison.errors()
            rivals.append(Rival(bits, figures["top1"], figures["agreement"], error, energies(costs, bits)))
        return rivals
