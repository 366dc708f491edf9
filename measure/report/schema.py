"""What the documents that a report is made of may hold; see `vit2snn.reading`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from ...reading import Amount, Count, Number, Percent, Step, Text

Curve = Annotated[list[Amount], Meta(min_length=1)]
"""A figure at each timestep."""
Range = Annotated[list[Amount], Meta(min_length=2, max_length=2)]
Cosine = Annotated[float, Meta(ge=-1.001, le=1.001)]


class _Point(TypedDict):
    timestep: Step
    spikes_per_neuron: Amount
    operations: Amount
    energy: Amount
    latency: Step


class ZooPoint(_Point):
    """A point of the curve of a model that has no ANN to agree with."""

    top1: Percent
    agreement: None
    relative_error: None


class _OfFeatures(TypedDict, total=False):
    similarity: Cosine


class Point(_Point, _OfFeatures):
    """A point of the curve of a converted model."""

    top1: Percent | None
    agreement: Percent
    relative_error: Amount


class Accuracy(TypedDict, total=False):
    """Of the ANN, where there are labels."""

    top1: Percent


class Exit(TypedDict):
    """Early exits."""

    top1: Percent
    energy: Amount
    timesteps: Amount


class RivalRow(TypedDict):
    """A quantised ANN."""

    bits: Count
    top1: Percent | None
    agreement: Percent
    energy_uj: Range


class ContestPart(TypedDict):
    """Quantised ANNs beside the network."""

    machines: Annotated[list[Text], Meta(min_length=2, max_length=2)]
    rivals: list[RivalRow]
    energy_uj: Annotated[list[Curve], Meta(min_length=2, max_length=2)]
    verdicts: list[Text]


class ModuleRow(TypedDict):
    """A neuron or block."""

    name: Text
    module: Text
    relative_error: Curve
    spikes_per_neuron: Amount
    saturation: list[Amount]
    dead: Amount


class AdviceRow(TypedDict):
    """A finding."""

    finding: Text
    action: Text


class OperationRow(TypedDict):
    """An operation of the audit."""

    module: Text
    function: Text
    operands: list[Text]
    copies: Count
    accumulates: Amount
    multiplies: Amount
    addition_only: bool


class AuditPart(TypedDict):
    """How spike-driven it is."""

    sentence: Text
    additions: Amount
    timesteps: Step
    images: Count
    operations: list[OperationRow]


class NeuronRow(TypedDict):
    """What a neuron sent."""

    neuron: Text
    kind: Text | None
    rate: Curve


class EnergyRow(TypedDict):
    """The energy of an image by a model of energies."""

    name: Text
    snn_uj: Curve
    ann_uj: Amount


class Traffic(TypedDict):
    """Energy of moving words, from the least to the most."""

    snn: Range
    ann: Range


class CostsPart(TypedDict):
    """What an image costs."""

    neurons: list[NeuronRow]
    energy: list[EnergyRow]
    convention_uj: Amount
    memory_estimate_uj: Traffic


class CalibrationPart(TypedDict):
    """Calibration images, and how many of them were scored."""

    images: Count
    scored: Count


class ReadPart(TypedDict):
    """What images were read from: the data, its split, how many images that has, and how many of those were passed over."""

    data: Text
    split: Text
    images: Count | None
    skipped: Count


class _Maybe(TypedDict, total=False):
    exit: Exit | None
    contest: ContestPart | None
    modules: list[ModuleRow]
    advice: list[AdviceRow]
    command: list[Text]
    read: ReadPart


class _Evaluation(_Maybe):
    output: Literal["classes", "features"]
    images: Step
    digest: Text
    calibration: CalibrationPart
    audit: AuditPart
    costs: CostsPart


class ZooEvaluation(_Evaluation):
    """``evaluation.json`` of a zoo model."""

    snn: Annotated[list[ZooPoint], Meta(min_length=1)]


class Evaluation(_Evaluation):
    """``evaluation.json`` of a converted model."""

    ann: Accuracy
    snn: Annotated[list[Point], Meta(min_length=1)]


class PlanRow(TypedDict):
    """A row of ``conversion.json``."""

    name: Text
    source: Text
    result: Text
    action: Text
    macs: Count


class Run(TypedDict, total=False):
    """``run.json``: how a model was made."""

    command: list[Text]
    seed: int
    seconds: Number
    data: Text | None
    read: ReadPart
