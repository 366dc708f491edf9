"""The recipe: everything that decides what a conversion gives, as data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from ..errors import RecipeError
from ..reading import LONGEST, MOST_BITS, parsed
from ..spiking.substitutes import INTERACTION, interacts
from .fields import FieldError, check_bounds, check_types, from_fields, shown, to_fields
from .spikes import KEPT_PATH, Coded, Membrane
from .structures import Structure

VERSION = 3
KINDS: Mapping[str, type[Coded] | type[Membrane]] = MappingProxyType({kind.KIND: kind for kind in (Coded, Membrane)})


@dataclass(frozen=True)
class Recipe:
    """How a network is converted: what takes the place of what, and how values become spikes.

    It cannot be changed, and has a hash; `changed` makes another one, `to_json` and `from_json` keep it on disk.

    Args:
        timesteps: T that thresholds are calibrated for, and the default T of a run.
        structure: what takes the place of what.
        spikes: of coded neurons, or of membrane neurons in substitutes.
        max_error: of ``auto``: the error that a branch may be left with (see `vit2snn.convert.trials.Candidate`), in the mean
            over branches; the cheapest such plan is taken.
        max_energy: relative to the ANN's. Of ``auto``: that of the replaced branches; the plan of least error is taken. Of
            coded neurons: that of all timesteps; the lowest price of spikes that keeps to it is taken.
        ignore: patterns (``fnmatch``) of module names that stay analog.
        weight_bits: of integers that weights are rounded to, with a scale for each output channel (see
            `vit2snn.convert.rounding`); None leaves them in float.

    Raises:
        RecipeError: a field has a value that it cannot have, or contradicts another; the message names fields by their paths,
            such as ``spikes.kept.levels``.
    """

    PATH: ClassVar[str] = ""

    timesteps: int = 4
    structure: Structure = field(default_factory=Structure)
    spikes: Coded | Membrane = field(default_factory=Coded)
    max_error: float | None = None
    max_energy: float | None = None
    ignore: tuple[str, ...] = ()
    weight_bits: int | None = None

    def __post_init__(self) -> None:
        check_types(self, self.PATH)
        bounds = {
            "timesteps": (1 <= self.timesteps <= LONGEST, f"from 1 to {LONGEST}"),
            "max_error": (self.max_error is None or self.max_error > 0, "above 0"),
            "max_energy": (self.max_energy is None or self.max_energy > 0, "above 0"),
            "weight_bits": (self.weight_bits is None or 2 <= self.weight_bits <= MOST_BITS, f"from 2 to {MOST_BITS}"),
        }
        check_bounds(self, self.PATH, bounds)
        self._check_together()
        self._check_budget()
        if self.structure.replaces and self.structure.refit is None:
            object.__setattr__(self, "structure", dataclasses.replace(self.structure, refit="blocks"))

    def _check_together(self) -> None:
        """Refuse structures and spikes that do not go together; this is the only place that ties one to the other."""
        structure, membrane = self.structure, isinstance(self.spikes, Membrane)
        if membrane and not structure.replaces:
            raise FieldError(
                "spikes", "kind", "is 'membrane', and every block keeps its own branches",
                "choose other branches, such as structure.attention 'ssa+conv' and structure.mlp 'relu', or kind 'coded'",
            )  # fmt: skip
        if membrane and structure.norm == "gated":
            raise FieldError(
                Structure.PATH, "norm", "is 'gated', and spikes are of kind 'membrane'",
                "choose 'static': a gate would multiply the stream, which is no spike",
            )  # fmt: skip
        timed = sorted(kind for kind in structure.kinds("attention") if interacts(kind))
        if timed and not membrane:
            raise FieldError(
                Structure.PATH, "attention", f"is {timed[0]!r}, and a temporal interaction needs neurons that live in time",
                f"leave +{INTERACTION} out, or choose spikes of kind 'membrane'",
            )  # fmt: skip

    def _check_budget(self) -> None:
        """Refuse budgets that nothing could be chosen for."""
        auto = bool(self.structure.undecided)
        if self.max_error is not None and not auto:
            raise FieldError(
                self.PATH, "max_error", "is given, and neither structure.attention nor structure.mlp is 'auto'",
                "leave it out, or let one of them be chosen",
            )  # fmt: skip
        if self.max_energy is not None and not auto and not self.takes_budget:
            raise FieldError(
                self.PATH, "max_energy",
                "(--budget) is given, and needs an 'auto' branch, or closed-loop thresholds where all branches are kept",
                "choose another recipe, such as faithful, or leave the budget out",
            )  # fmt: skip
        if self.max_energy is not None and not auto and self.coded.refit_passes:
            raise FieldError(
                self.PATH, "max_energy", "(--budget) is given, and spikes.refit_passes changes the energy after it was met",
                "choose spikes.price in place of the budget, or leave the refit out",
            )  # fmt: skip
        if self.max_error is not None and self.max_energy is not None:
            raise FieldError(self.PATH, "max_error", "is given, and max_energy too", "choose one of the budgets")

    @property
    def coded(self) -> Coded:
        """Its coded neurons: all that it has, or those of what keeps the ANN's function."""
        return self.spikes if isinstance(self.spikes, Coded) else self.spikes.kept

    @property
    def spike_driven(self) -> bool:
        """Whether its substitutes have membrane neurons, so that they live in time."""
        return isinstance(self.spikes, Membrane)

    @property
    def synchronous(self) -> bool:
        """Whether each layer goes through all its timesteps before the next one begins."""
        return self.coded.synchronous

    @property
    def lag(self) -> int:
        """How many timesteps each layer begins after the one before it."""
        return self.coded.lag(self.timesteps)

    @property
    def keeps_function(self) -> bool:
        """Whether the network with analog neurons computes what the ANN computes."""
        return self.structure.keeps_function and self.weight_bits is None and not self.coded.refit_passes

    @property
    def takes_budget(self) -> bool:
        """Whether its spikes can have a price."""
        spikes = self.spikes
        return isinstance(spikes, Coded) and spikes.thresholds == "closed-loop" and spikes.levels > 0 and not spikes.staggered

    def ignores(self, name: str) -> bool:
        """Whether a module of that name is left as it is."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)

    def changed(self, **fields: Any) -> Recipe:
        """With other values of some fields, each by its own name in whatever part: ``changed(timesteps=2, refit="none")``.

        Those of coded neurons are found beside membrane neurons too.

        Raises:
            RecipeError: there is no such field, or it cannot have that value.
        """

        def taken(part: Any) -> dict[str, Any]:
            return {name: fields.pop(name) for name in _names(part) if name in fields}

        whole = taken(self)
        for path in (Structure.PATH, Coded.PATH):
            before = whole.get(path, getattr(self, path))
            whole[path] = from_fields(before, taken(before), path, _belongs)
        spikes = whole[Coded.PATH]
        if isinstance(spikes, Membrane):
            kept = from_fields(spikes.kept, taken(spikes.kept), KEPT_PATH, _belongs)
            whole[Coded.PATH] = dataclasses.replace(spikes, kept=kept)
        for name in fields:
            raise FieldError(self.PATH, name, "is unknown", _belongs(name))
        return dataclasses.replace(self, **whole)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        fields = {"version": VERSION} | to_fields(self)
        return fields | {"spikes": {"kind": self.spikes.KIND} | fields["spikes"]}

    @classmethod
    def from_json(cls, fields: Any) -> Recipe:
        """The inverse of `to_json`; fields left out have their defaults.

        Raises:
            RecipeError: not a JSON object, another version, an unknown field, or a value that a field cannot have.
        """
        if not isinstance(fields, dict):
            raise RecipeError(f"a recipe is a JSON object, got {shown(fields)}", "see 'Recipe files' in docs/recipes.md")
        version = fields.get("version", VERSION)
        if type(version) is not int or version != VERSION:
            raise RecipeError(
                f"recipe has version {shown(version)}, this vit2snn reads version {VERSION}",
                "write its fields anew, as parts 'structure' and 'spikes': see docs/recipes.md",
            )
        read = {name: value for name, value in fields.items() if name != "version"}
        if "structure" in read:
            read["structure"] = from_fields(Structure(), read["structure"], Structure.PATH, _belongs)
        if "spikes" in read:
            read["spikes"] = _spikes(read["spikes"])
        if isinstance(read.get("ignore"), list):
            read["ignore"] = tuple(read["ignore"])
        return from_fields(cls(), read, cls.PATH, _belongs)

    @classmethod
    def find(cls, name: str | Path) -> Recipe:
        """The recipe of that name, or the one in that JSON file.

        Raises:
            RecipeError: there is neither, or the file is not a recipe.
        """
        if str(name) in RECIPES:
            return RECIPES[str(name)]
        if not os.path.exists(name):
            raise RecipeError(f"there is no recipe and no file {str(name)!r}", f"recipes by name: {', '.join(RECIPES)}")
        fields = parsed(Path(name), "see docs/recipes.md", RecipeError)
        try:
            return cls.from_json(fields)
        except RecipeError as error:
            raise RecipeError(f"{error}, in {str(name)!r}", error.hint) from None


def _names(part: Any) -> list[str]:
    return [entry.name for entry in dataclasses.fields(part)]


def _belongs(name: str) -> str:
    """Where a field of that name belongs, as a hint; empty if nowhere."""
    parts = {"": Structure} | {f", with spikes of kind {kind!r}": part for kind, part in KINDS.items()}
    return next((f"it is written as {part.PATH}.{name}{kind}" for kind, part in parts.items() if name in _names(part)), "")


def _spikes(fields: object) -> Coded | Membrane:
    """The neurons of a JSON object; of kind ``coded`` unless it says another."""
    if not isinstance(fields, dict):
        raise FieldError("spikes", "", f"must be a JSON object, got {shown(fields)}", "see docs/recipes.md")
    kind, fields = fields.get("kind", Coded.KIND), {name: value for name, value in fields.items() if name != "kind"}
    if not isinstance(kind, str) or kind not in KINDS:
        raise FieldError("spikes", "kind", f"must be {' or '.join(map(repr, KINDS))}, got {shown(kind)}")
    if kind == Membrane.KIND and "kept" in fields:
        fields["kept"] = from_fields(Membrane().kept, fields["kept"], KEPT_PATH, _belongs)
    return from_fields(KINDS[kind](), fields, "spikes", _belongs)


FINE = Coded(levels=32, ratio=2 ** (1 / 8))
"""Twice as many levels as usual: at T = 1 the error of the spikes comes on top of that of the structure."""
PAIRED = Coded(
    schedule="layer-synchronous", levels=1, rotation=True, input_spikes=1, headroom=1.0, granularity="channel"
)  # fmt: skip
"""A signed spike is that of one of two binary neurons: for what is above the mean, and for what is below. A value has T digits,
each -1, 0 or 1."""
WAVE = dataclasses.replace(PAIRED, schedule="wavefront", bias=False)
"""Digits of a value that a neuron begins to send before the value has settled."""
QKFORMER = Structure({"first third": "qk-channel+ssa+conv", "last two thirds": "qk-relu+conv"}, "relu", norm="gated")
EXPERTS = Structure({"first third": "experts+conv", "last two thirds": "experts+qk-relu+conv"}, "emsp", norm="gated")
HYBRID = Structure(
    {"first third": "qk-channel+ssa+conv", "middle third": "qk-relu+conv"}, {"first two thirds": "relu"}, norm="gated"
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "faithful": Recipe(),
        "frugal": Recipe(timesteps=1, spikes=Coded(price=2e-10)),
        "ternary": Recipe(timesteps=8, spikes=WAVE),
        "ternary-stepwise": Recipe(
            timesteps=16, spikes=Coded(levels=1, rotation=True, input_spikes=1, headroom=1.0, granularity="channel")
        ),
        "ternary-synchronous": Recipe(timesteps=5, spikes=PAIRED),
        "binary": Recipe(timesteps=8, spikes=dataclasses.replace(WAVE, signed=False, centred=True)),
        # Pairs of binary neurons here too.
        "binary-rate": Recipe(
            timesteps=32,
            spikes=Coded(
                coding="rate",
                levels=1,
                rotation=True,
                input_spikes=1,
                thresholds="static",
                headroom=1.0,
                granularity="channel",
            ),
        ),
        "exact": Recipe(timesteps=1, spikes=Coded(levels=0)),
        "qkformer": Recipe(structure=QKFORMER, spikes=FINE),
        "experts": Recipe(structure=EXPERTS, spikes=FINE),
        "hybrid": Recipe(structure=HYBRID, spikes=FINE),
        "qkformer-binary": Recipe(structure=QKFORMER, spikes=PAIRED),
        "experts-binary": Recipe(structure=EXPERTS, spikes=PAIRED),
        "qkformer-membrane": Recipe(
            structure=Structure({"first half": "qk-token+ssa+conv", "second half": "ssa+conv"}, "relu", norm="static"),
            spikes=Membrane(),
        ),
        "experts-membrane": Recipe(
            structure=Structure({"first half": "experts+conv", "second half": "emsa+conv"}, "emsp", norm="static"),
            spikes=Membrane(),
        ),
        "spike-driven": Recipe(structure=Structure("ssa+conv", "relu", norm="static"), spikes=Membrane()),
        "neuromorphic": Recipe(
            timesteps=8,
            structure=Structure("qk-channel+sdsa+conv", "relu", norm="static"),
            spikes=Membrane(neuron="lif"),
        ),
        "shift": Recipe(
            structure=Structure("shift-softmax", "shift-mlp", norm="shift-layernorm"),
            spikes=Coded(levels=8, ratio=2.0, observer="percentile", headroom=4.0),
        ),
    }
)
"""Recipes by name; ``exact`` has analog neurons, for checking that a conversion computes what the ANN computes."""
