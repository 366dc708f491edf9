"""What the files of a search may hold; see `vit2snn.reading`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from ..reading import Amount, Count, Number, Text

Width = Annotated[int, Meta(ge=1, le=2**14)]
Blocks = Annotated[int, Meta(ge=1, le=2**8)]
Stages = Annotated[list[Blocks], Meta(min_length=1, max_length=8)]
Steps = Annotated[int, Meta(ge=1, le=2**10)]
Side = Annotated[int, Meta(ge=1, le=2**11)]
Ratio = Annotated[int, Meta(gt=0, le=64)] | Annotated[float, Meta(gt=0, le=64)]
"""Whole ones stay whole, so that a search that is resumed writes what it would have written."""


class Genes(TypedDict):
    """An architecture."""

    dim: Width
    depths: Stages
    attention: list[Text]
    num_heads: list[Width]
    mlp_ratios: list[Ratio]
    timesteps: Steps


class Model(Genes):
    """Arguments of a model; timm would take others, which open files."""

    frame: Text
    pools: Text
    neuron: Text
    num_classes: Annotated[int, Meta(ge=1, le=2**20)]
    in_chans: Annotated[int, Meta(ge=1, le=2**10)]


class FiguresRow(TypedDict):
    """What was counted of an architecture."""

    score: Number
    parameters: Count
    macs: Count
    energy: Amount
    latency: Amount | None


class Entry(TypedDict):
    """An architecture that was found."""

    figures: FiguresRow
    architecture: Genes
    model: Model


class Images(TypedDict):
    """The images that models are for."""

    size: Side
    in_chans: Annotated[int, Meta(ge=1, le=2**10)]
    num_classes: Annotated[int, Meta(ge=1, le=2**20)]
    stem: Literal["imagenet", "cifar", "dvs"]


class Asked(TypedDict):
    """Of what was asked for, what a model needs."""

    images: Images


class Outcome(TypedDict):
    """What was found."""

    best: Entry
    front: list[Entry]
    compared: Count
    request: Asked


class Found(TypedDict):
    """An architecture that was met."""

    architecture: Genes
    figures: FiguresRow


class State(TypedDict):
    """All that a search needs to go on."""

    generation: Annotated[int, Meta(ge=-1, le=2**31)]
    random: tuple[int, list[Count], float | None]
    found: list[Found]
    population: list[Count]
    parents: list[Count]


class Progress(TypedDict):
    """An unfinished search."""

    request: dict[str, Any]
    state: State
