"""A model as its documents describe it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..outputs import WORDS, Words
from .schema import PlanRow, Run


@dataclass(frozen=True)
class Artifact:
    """A model in a folder, as its documents describe it.

    Attributes:
        folder: where it is.
        name: what the report calls it.
        recipe: the name of the recipe it was converted with, or what is its own about it; empty for a zoo model.
        config: ``config.json``.
        evaluation: ``evaluation.json``.
        plan: ``conversion.json``, a row for each module; empty for a zoo model.
        run: ``run.json``: how it was made; empty if nothing tells.
    """

    folder: Path
    name: str
    recipe: str
    config: dict[str, Any]
    evaluation: dict[str, Any]
    plan: list[PlanRow]
    run: Run

    @property
    def section(self) -> dict[str, Any]:
        """What vit2snn has added to ``config.json``."""
        found: dict[str, Any] = self.config["vit2snn" if self.converted else "vit2snn_zoo"]
        return found

    @property
    def converted(self) -> bool:
        """Whether it comes from an ANN, which is then evaluated beside it."""
        return "vit2snn" in self.config

    @property
    def source(self) -> str:
        """What the ANN was called; of a zoo model, its architecture."""
        return str(self.section.get("source") or self.config["architecture"])

    @property
    def words(self) -> Words:
        """What its figures are called."""
        return WORDS[self.evaluation["output"]]

    @property
    def decisive(self) -> Literal["top1", "agreement"]:
        """The figure of a point that tells how good it is: accuracy or, without labels, agreement."""
        return "agreement" if self.points[0]["top1"] is None else "top1"

    @property
    def of_ann(self) -> float:
        """The same of the ANN, which agrees with itself."""
        return float(self.evaluation["ann"].get("top1", 100.0))

    @property
    def points(self) -> list[dict[str, Any]]:
        """The curve."""
        found: list[dict[str, Any]] = self.evaluation["snn"]
        return found

    @property
    def synchronous(self) -> bool:
        """Whether each layer goes through all its timesteps before the next: figures of T are then of a run of T timesteps."""
        return bool(self.converted and self.section["recipe"]["spikes"].get("schedule", "stepwise") != "stepwise")
