"""The structure of a converted network: what takes the place of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from .blocks import AUTO, Choice, any_new, check_choice, is_new
from .choices import ByBlock
from .fields import FieldError, check_bounds, check_types, shown

Norm = Literal["layernorm", "shift-layernorm", "static", "gated"]
Readout = Literal["model", "class-token", "mean"]
Refit = Literal["none", "ridge", "blocks", "network"]
LONGEST = 10**6  # passes
FIELDS = ("attention", "mlp")
"""Those that name a kind for each block."""


@dataclass(frozen=True)
class Structure:
    """What takes the place of what. With nothing given, the ANN's own parts stay.

    In families other than the plain ViT, lines take the place of functions within the family's own code: all new attention is
    ``qk-relu``, all new perceptrons are ``relu``, and ``ridge`` regression has nothing to do (see `vit2snn.convert.lines`).

    Args:
        attention: of each block (see `vit2snn.convert.blocks`): ``softmax`` or ``shift-softmax`` on decoded values, or a sum of
            terms in `vit2snn.spiking.substitutes`, such as ``qk-channel+conv``; with membrane neurons also with ``+tim``, a
            temporal interaction of the query. ``auto`` measures several of them on the calibration images.
        mlp: of each block: ``mlp`` or ``shift-mlp`` on decoded values, ``relu`` or ``emsp``.
        norm: in front of new branches: ``static``, a map by channel; ``gated``, the same behind a gate of each token's size,
            for coded neurons; ``layernorm``; or ``shift-layernorm``, which takes the place of every LayerNorm.
        readout: the head reads the ``class-token``, the ``mean`` over the patches, or what the ``model`` does.
        refit: of new branches on the calibration images: ``none``, ``ridge`` regression of their weights, gradient descent on
            their ``blocks``, or on the whole ``network`` after that. Membrane neurons are balanced in any case, and then
            the same is done through their spikes, branch by branch. Unless it is given, a recipe has
            ``blocks``; None where no branch is new.
        passes: how often the fit of the whole network goes through the images.

    Raises:
        RecipeError: a field has a value that it cannot have, or is about new branches where there are none.
    """

    PATH: ClassVar[str] = "structure"

    attention: Choice = "softmax"
    mlp: Choice = "mlp"
    norm: Norm = "layernorm"
    readout: Readout = "model"
    refit: Refit | None = None
    passes: int = 40

    def __post_init__(self) -> None:
        for name in FIELDS:
            choice = getattr(self, name)
            check_choice(name, choice)
            if isinstance(choice, Mapping):
                self._check_keys(name, choice)
                object.__setattr__(self, name, ByBlock(choice))
        check_types(self, self.PATH)
        check_bounds(self, self.PATH, {"passes": (1 <= self.passes <= LONGEST, f"from 1 to {LONGEST}")})
        if self.replaces:
            return
        given = {
            "norm": self.norm in ("static", "gated"),
            "readout": self.readout != "model",
            "refit": self.refit is not None,
        }
        for name, is_given in given.items():
            if is_given:
                raise FieldError(
                    self.PATH, name, f"is {getattr(self, name)!r}, and every block keeps its own branches",
                    "leave it out, or choose other branches, such as structure.attention 'ssa+conv' and structure.mlp 'relu'",
                )  # fmt: skip

    def _check_keys(self, name: str, choice: Mapping[str, str]) -> None:
        for key in choice:
            if not isinstance(key, str):
                raise FieldError(self.PATH, name, f"must name blocks by strings, got {shown(key)}", "such as '0' or '0-7'")

    @property
    def replaces(self) -> bool:
        """Whether some block gets a new branch in place of its own."""
        return any_new(self.attention) or any_new(self.mlp)

    @property
    def keeps_function(self) -> bool:
        """Whether the network with analog neurons computes what the ANN computes."""
        return self.attention == "softmax" and self.mlp == "mlp" and self.norm == "layernorm"

    def kinds(self, field: str) -> set[str]:
        """The kinds of new branches that one of `FIELDS` names; none where it says ``auto``."""
        choice = getattr(self, field)
        named = set(choice.values()) if isinstance(choice, Mapping) else {choice} - {AUTO}
        return {kind for kind in named if is_new(kind)}

    @property
    def undecided(self) -> tuple[str, ...]:
        """The fields that are ``auto``."""
        return tuple(name for name in FIELDS if getattr(self, name) == AUTO)
