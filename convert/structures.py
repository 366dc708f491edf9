"""The structure of a converted network: what takes the place of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from .blocks import AUTO, Choice, any_spiking, check_choice
from .choices import ByBlock
from .fields import FieldError, check_types, shown

Norm = Literal["layernorm", "shift-layernorm", "batchnorm"]
Readout = Literal["model", "class-token", "mean"]
Refit = Literal["none", "ridge", "blocks"]
FIELDS = ("attention", "mlp")
"""Those that name a kind for each block."""


@dataclass(frozen=True)
class Structure:
    """What takes the place of what. With nothing given, the ANN's own parts stay.

    Args:
        attention: of each block (see `vit2snn.convert.blocks`): ``softmax`` or ``shift-softmax`` on decoded values, or of
            spikes: a kind in `vit2snn.spiking.branches`, such as ``ssa`` or ``qk-token``, also with ``+tim``. ``auto`` measures
            all of them on the calibration images.
        mlp: of each block: ``mlp`` or ``shift-mlp`` on decoded values, or of spikes, such as ``spiking``.
        norm: in front of new branches: ``batchnorm``, calibrated, which folds; ``layernorm``; or ``shift-layernorm``, which
            takes the place of every LayerNorm.
        readout: the head reads the ``class-token``, the ``mean`` over the patches, or what the ``model`` does.
        refit: of new branches on the calibration images: ``none``, ``ridge`` regression of their weights (unless given), or
            gradient descent on their ``blocks`` after that. None where no branch is new.

    Raises:
        RecipeError: a field has a value that it cannot have, or is about new branches where there are none.
    """

    PATH: ClassVar[str] = "structure"

    attention: Choice = "softmax"
    mlp: Choice = "mlp"
    norm: Norm = "layernorm"
    readout: Readout = "model"
    refit: Refit | None = None

    def __post_init__(self) -> None:
        for name in FIELDS:
            choice = getattr(self, name)
            check_choice(name, choice)
            if isinstance(choice, Mapping):
                self._check_keys(name, choice)
                object.__setattr__(self, name, ByBlock(choice))
        check_types(self, self.PATH)
        if self.replaces:
            object.__setattr__(self, "refit", self.refit or "ridge")
            return
        given = {"norm": self.norm == "batchnorm", "readout": self.readout != "model", "refit": self.refit is not None}
        for name, is_given in given.items():
            if is_given:
                raise FieldError(
                    self.PATH, name, f"is {getattr(self, name)!r}, and every block keeps its own branches",
                    "leave it out, or choose other branches, such as structure.attention 'ssa' and structure.mlp 'spiking'",
                )  # fmt: skip

    def _check_keys(self, name: str, choice: Mapping[str, str]) -> None:
        for key in choice:
            if not isinstance(key, str):
                raise FieldError(self.PATH, name, f"must name blocks by strings, got {shown(key)}", "such as '0' or '0-7'")

    @property
    def replaces(self) -> bool:
        """Whether some block gets a new branch in place of its own."""
        return any_spiking(self.attention) or any_spiking(self.mlp)

    @property
    def keeps_function(self) -> bool:
        """Whether the network with analog neurons computes what the ANN computes."""
        return self.attention == "softmax" and self.mlp == "mlp" and self.norm == "layernorm"

    @property
    def undecided(self) -> tuple[str, ...]:
        """The fields that are ``auto``."""
        return tuple(name for name in FIELDS if getattr(self, name) == AUTO)
