"""What a network puts out (classes, features or numbers), and what the figures that it is scored by are then called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import ModelError
from ..spiking import SpikingNetwork

Output = Literal["classes", "features", "numbers"]


@dataclass(frozen=True)
class Words:
    """What figures are called; empty where an output has no such figure.

    Attributes:
        top1: of the accuracy in per cent.
        agreement: with the ANN, in per cent.
        similarity: to the ANN, up to 1.
        mean_error: in the unit of the labels.
    """

    top1: str = ""
    agreement: str = ""
    similarity: str = ""
    mean_error: str = ""


WORDS: dict[Output, Words] = {
    "classes": Words("top-1", "agreement"),
    "features": Words("1-NN accuracy", "neighbour agreement", "cosine"),
    "numbers": Words(similarity="correlation", mean_error="mean error"),
}


def output_of(network: SpikingNetwork) -> Output:
    """What the ``num_classes`` of a network says, as timm's models have it: features where it is 0, a number where it is 1.

    A module without ``num_classes`` is taken for a classifier.
    """
    by_size: dict[int | None, Output] = {0: "features", 1: "numbers"}
    return by_size.get(getattr(network.network, "num_classes", None), "classes")


def check_classifier(network: SpikingNetwork) -> None:
    """Refuse early exits of a network whose output has no class to be sure of.

    Raises:
        ModelError: it is no classifier.
    """
    output = output_of(network)
    if output != "classes":
        raise ModelError(f"early exits ask how sure a class is, and this network puts out {output}", "show all timesteps")
