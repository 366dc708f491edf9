"""The recipe: everything that decides what a conversion gives, as data."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from ..calibration import Balance, Prior, ThresholdRule
from ..errors import RecipeError
from ..spiking import Alphabet, CodedNeuron, Coding
from .blocks import AUTO, Choice, any_spiking, check_choice

VERSION = 2
Norm = Literal["layernorm", "shift-layernorm", "batchnorm"]
Refit = Literal["none", "ridge", "blocks"]


@dataclass(frozen=True)
class Recipe:
    """How a network is converted. Frozen; `to_json` and `from_json` keep it on disk.

    The fields from ``coding`` to ``bias`` are of the coded neurons, which drive the operations that keep the ANN's function;
    those from ``norm`` to ``rate`` are of the spiking branches that ``attention`` and ``mlp`` put in place of the ANN's own.

    Args:
        timesteps: T that thresholds are calibrated for, and the default T of a run.
        attention: of each block (see `vit2snn.convert.blocks`): ``softmax`` or ``shift-softmax`` on decoded values, or of
            spikes: ``ssa``, ``qk-token``, ``qk-channel``, ``sdsa``, ``emsa``, each of these also with ``+tim``. ``auto``
            measures them on the calibration images.
        mlp: of each block: ``mlp`` or ``shift-mlp`` on decoded values, or of spikes: ``spiking``, ``emsp``.
        coding: ``differential`` (spikes carry changes), ``rate`` (the decoded value is the mean of the spikes), or ``decaying``
            (changes, in units that fall as 1/t).
        schedule: ``stepwise`` (all layers compute each timestep, and a receiver reads values that are still being refined) or
            ``layer-synchronous`` (each layer goes through all its timesteps before the next one begins).
        levels: size of the spike alphabet {θ ρ^-k, k < levels}; 1 is binary or ternary, 0 means exact (analog) neurons.
        ratio: ρ of the alphabet; with observer ``mse`` the finest that a neuron may have: it gets 2, or a finer 2^(1/m),
            whichever leaves least error.
        signed: whether spikes have both signs.
        rotation: whether the neurons of linear layers see their input rotated by a Hadamard matrix (see
            `vit2snn.spiking.Hadamard`), which small alphabets need.
        spikes_per_step: the longest burst that a neuron may send in one timestep.
        input_spikes: the same for the first neurons, where it is more: they see the image itself, and all others inherit their
            error.
        attention_spikes: the same for the outputs of softmax, where it is more: they span the most octaves, and few fire.
        thresholds: ``closed-loop`` (for each timestep, from the spiking network itself) or ``static``.
        observer: the statistic that sets thresholds: ``percentile``, ``max``, ``mse`` or ``entropy``.
        percentile: of the ``percentile`` observer, 0..100.
        headroom: thresholds are this multiple of the statistic.
        price: the relative squared error of the logits that a spike has to save at the first timestep (at later ones less), or
            else it is not sent; 0 sends all.
        granularity: one threshold for each ``tensor`` or each ``channel``.
        prior: what the decoded value starts from: ``mean`` activation, channel ``minimum``, or ``none``.
        bias: whether each timestep has a calibrated bias for each channel.
        norm: in front of spiking branches: ``batchnorm``, calibrated, which folds; ``layernorm``; or ``shift-layernorm``, which
            takes the place of every LayerNorm.
        neuron: of spiking branches, by its name in `vit2snn.spiking.NEURONS`.
        shortcut: around spiking branches: ``membrane`` adds currents to a real-valued stream, ``sew`` adds spikes.
        readout: the head reads the ``class-token``, the ``mean`` over the patches, or what the ``model`` does.
        refit: of spiking branches on the calibration images: ``none``, ``ridge`` regression of their weights, or gradient
            descent on their ``blocks`` after that.
        balance: thresholds of membrane neurons for the least ``error`` of their firing rates, or for a given firing ``rate``.
        rate: spikes in a timestep that ``balance`` aims at, 0..1.
        max_error: of ``auto``: the relative error that a branch may be left with, in the mean over branches; the cheapest such
            plan is taken.
        max_energy: relative to the ANN's. Of ``auto``: that of the replaced branches; the plan of least error is taken. Of
            coded neurons: that of all timesteps; the lowest price of spikes that keeps to it is taken.
        ignore: patterns (``fnmatch``) of module names that stay analog.
        version: of this schema.

    Raises:
        RecipeError: a field has a value outside its range; the message names field, value and range.
    """

    timesteps: int = 4
    attention: Choice = "softmax"
    mlp: Choice = "mlp"
    coding: Literal["differential", "rate", "decaying"] = "differential"
    schedule: Literal["stepwise", "layer-synchronous"] = "stepwise"
    levels: int = 16
    ratio: float = 2**0.25
    signed: bool = True
    rotation: bool = False
    spikes_per_step: int = 1
    input_spikes: int = 2
    attention_spikes: int = 1
    thresholds: Literal["closed-loop", "static"] = "closed-loop"
    observer: Literal["percentile", "max", "mse", "entropy"] = "mse"
    percentile: float = 99.9
    headroom: float = 1.25
    price: float = 0.0
    granularity: Literal["tensor", "channel"] = "tensor"
    prior: Prior = "mean"
    bias: bool = True
    norm: Norm = "layernorm"
    neuron: Literal["lif", "if", "plif", "integer-lif", "ternary"] = "lif"
    shortcut: Literal["membrane", "sew"] = "membrane"
    readout: Literal["model", "class-token", "mean"] = "model"
    refit: Refit = "ridge"
    balance: Balance = "error"
    rate: float = 0.25
    max_error: float | None = None
    max_energy: float | None = None
    ignore: tuple[str, ...] = ()
    version: int = VERSION

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if field.name in ("attention", "mlp"):
                check_choice(field.name, getattr(self, field.name))
            else:
                _check_type(field.name, getattr(self, field.name), hints[field.name])
        bounds = {
            "timesteps": self.timesteps >= 1,
            "levels": self.levels >= 0,
            "ratio": math.isfinite(self.ratio) and self.ratio > 1,
            "spikes_per_step": self.spikes_per_step >= 1,
            "input_spikes": self.input_spikes >= 1,
            "attention_spikes": self.attention_spikes >= 1,
            "percentile": 0 < self.percentile <= 100,
            "headroom": math.isfinite(self.headroom) and self.headroom > 0,
            "price": math.isfinite(self.price) and self.price >= 0,
            "rate": 0 < self.rate < 1,
            "max_error": self.max_error is None or self.max_error > 0,
            "max_energy": self.max_energy is None or self.max_energy > 0,
        }
        for name, holds in bounds.items():
            if not holds:
                raise RecipeError(f"recipe field {name!r} is out of range: {getattr(self, name)}", f"set another {name}")
        if self.version != VERSION:
            raise RecipeError(f"recipe has version {self.version}, this vit2snn reads version {VERSION}")
        if self.price and self.thresholds == "static":
            raise RecipeError("recipe field 'price' is given, and thresholds are static", "choose thresholds closed-loop")
        self._check_branches()

    def _check_branches(self) -> None:
        """Refuse fields of spiking branches that contradict each other."""
        if self.spike_driven and self.synchronous:
            raise RecipeError(
                "recipe field 'schedule' is 'layer-synchronous', and some branch is a spiking one, which lives in time",
                "choose schedule stepwise",
            )
        if not self.spike_driven:
            for name, given in {"norm": self.norm == "batchnorm", "readout": self.readout != "model"}.items():
                if given:
                    raise RecipeError(
                        f"recipe field {name!r} is {getattr(self, name)!r}, and no branch is a spiking one",
                        "choose a spiking attention or mlp, such as attention ssa and mlp spiking",
                    )
        auto = AUTO in (self.attention, self.mlp)
        if self.max_error is not None and not auto:
            raise RecipeError("recipe field 'max_error' is given, and neither attention nor mlp is 'auto'")
        if self.max_energy is not None and not auto and (self.spike_driven or self.thresholds == "static" or not self.levels):
            raise RecipeError(
                "recipe field 'max_energy' (--budget) is given, and needs an 'auto' branch, or closed-loop thresholds in a "
                "network without spiking branches",
                "choose another recipe, such as faithful, or leave the budget out",
            )
        if self.max_error is not None and self.max_energy is not None:
            raise RecipeError("recipe fields 'max_error' and 'max_energy' are both given", "choose one of the budgets")
        if self.shortcut == "sew" and self.refit == "blocks":
            raise RecipeError(
                "a stream of spikes (shortcut 'sew') cannot be fitted to the ANN's block by block", "choose refit 'ridge'"
            )

    @property
    def spike_driven(self) -> bool:
        """Whether some block gets a branch of spikes in place of its own."""
        return any_spiking(self.attention) or any_spiking(self.mlp)

    @property
    def synchronous(self) -> bool:
        """Whether each layer goes through all its timesteps before the next one begins."""
        return self.schedule == "layer-synchronous"

    @property
    def keeps_function(self) -> bool:
        """Whether the network with analog neurons computes what the ANN computes."""
        return self.attention == "softmax" and self.mlp == "mlp" and self.norm == "layernorm"

    @property
    def alphabet(self) -> Alphabet | None:
        """The spikes; None for exact neurons."""
        return Alphabet(self.levels, self.ratio, self.signed) if self.levels else None

    @property
    def rectifies(self) -> bool:
        """Whether a neuron's decoded value of something negative is 0, so that a ReLU in front of it does nothing."""
        return self.levels > 0 and not (self.signed or self.bias or self.rotation) and self.prior == "none"

    def ignores(self, name: str) -> bool:
        """Whether a module of that name is left as it is."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)

    @property
    def threshold_rule(self) -> ThresholdRule:
        """The part of the recipe that calibration needs for thresholds."""
        return ThresholdRule(self.observer, self.percentile, self.headroom, self.thresholds == "closed-loop", self.price)

    def coded_neuron(self, axes: tuple[int, ...] = (-1,), sees_image: bool = False) -> CodedNeuron:
        """A new neuron for an input whose channels lie along the negative ``axes``."""
        per_channel, burst = self.granularity == "channel", max(self.spikes_per_step, self.input_spikes if sees_image else 1)
        return CodedNeuron(self.alphabet, Coding(self.coding), axes, per_channel, burst, self.synchronous)

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return dataclasses.asdict(self) | {"ignore": list(self.ignore)}

    @classmethod
    def from_json(cls, fields: Any) -> Recipe:
        """The inverse of `to_json`; fields left out have their defaults.

        Raises:
            RecipeError: not a JSON object, an unknown field, or a value out of range.
        """
        if not isinstance(fields, dict):
            raise RecipeError(f"a recipe is a JSON object, got {type(fields).__name__}")
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise RecipeError(f"unknown recipe field {unknown[0]!r}", f"the fields are: {', '.join(known)}")
        if isinstance(fields.get("ignore"), list):
            fields = fields | {"ignore": tuple(fields["ignore"])}
        return cls(**fields)

    @classmethod
    def find(cls, name: str | Path) -> Recipe:
        """The recipe of that name, or the one in that JSON file.

        Raises:
            RecipeError: there is neither, or the file is not a recipe.
        """
        if str(name) in RECIPES:
            return RECIPES[str(name)]
        try:
            fields = json.loads(Path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecipeError(
                f"there is no recipe and no file {str(name)!r}", f"recipes by name: {', '.join(RECIPES)}"
            ) from None
        except (OSError, ValueError) as error:
            raise RecipeError(f"the recipe file {str(name)!r} cannot be read: {error}") from error
        return cls.from_json(fields)


def _check_type(name: str, value: object, hint: Any) -> None:
    choices = get_args(hint)
    if isinstance(hint, type) and hint in (int, float, bool):
        right = type(value) is hint or (hint is float and type(value) is int)
        expected = hint.__name__
    elif hint == float | None:
        right, expected = value is None or type(value) in (int, float), "a number or null"
    elif hint == tuple[str, ...]:
        right = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        expected = "a list of strings"
    else:
        right, expected = value in choices, " or ".join(map(repr, choices))
    if not right:
        raise RecipeError(f"recipe field {name!r} must be {expected}, got {value!r}")


RECIPES: dict[str, Recipe] = {
    "faithful": Recipe(),
    "frugal": Recipe(timesteps=1, price=3e-8),
    "ternary": Recipe(timesteps=16, levels=1, rotation=True, input_spikes=1, headroom=1.0, granularity="channel"),
    # Each step leaves at most a third of the range: balanced ternary numbers, with thresholds from the largest magnitudes.
    "ternary-synchronous": Recipe(
        timesteps=8,
        schedule="layer-synchronous",
        levels=1,
        rotation=True,
        input_spikes=1,
        observer="max",
        headroom=0.7,
    ),
    # A signed spike is that of one of two binary neurons: for what is above the mean, and for what is below.
    "binary": Recipe(
        timesteps=32,
        coding="rate",
        levels=1,
        rotation=True,
        input_spikes=1,
        thresholds="static",
        headroom=1.0,
        granularity="channel",
    ),
    "exact": Recipe(timesteps=1, levels=0),
    "qkformer": Recipe(
        attention={"first half": "qk-token", "second half": "ssa"}, mlp="spiking", norm="batchnorm", neuron="if", readout="mean"
    ),
    "experts": Recipe(attention="emsa", mlp="emsp", norm="batchnorm", neuron="if", readout="mean"),
    "spike-driven": Recipe(attention="ssa", mlp="spiking", norm="batchnorm", neuron="if", readout="mean"),
    "shift": Recipe(
        attention="shift-softmax",
        mlp="shift-mlp",
        norm="shift-layernorm",
        levels=8,
        ratio=2.0,
        observer="percentile",
        headroom=4.0,
    ),
}
"""Recipes by name; ``exact`` has analog neurons, for checking that a conversion computes what the ANN computes."""
