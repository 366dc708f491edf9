"""The README of a converted model, from its configuration and its conversion table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..convert import Membrane, Recipe

TEMPLATE = """# {architecture}, converted by vit2snn

A spiking network with the weights of `{source}` ({architecture}, {classes} classes).

* Recipe: T = {timesteps}, {spikes}.
* {spiking} modules are driven by spikes ({macs:.1f} million multiply-accumulates), {analog} compute on {rest}.{ignored}

Load it with `vit2snn.load(FOLDER)`, score it with `vit2snn evaluate FOLDER --data DATA`. The licence is that of the weights
it was made from{license}.
"""


def model_card(config: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    recipe = Recipe.from_json(config["vit2snn"]["recipe"])
    actions = Counter(row["action"] for row in rows)
    license_name = config["pretrained_cfg"].get("license")
    return TEMPLATE.format(
        architecture=config["architecture"],
        source=config["vit2snn"]["source"] or config["architecture"],
        classes=config["num_classes"],
        timesteps=recipe.timesteps,
        spikes=_spikes(recipe),
        spiking=actions["spiking"],
        analog=actions["analog"],
        macs=sum(row["macs"] for row in rows if row["action"] == "spiking") / 1e6,
        rest=_rest(recipe),
        ignored=f" {actions['ignored']} modules were left as they are by the recipe." if actions["ignored"] else "",
        license=f" ({license_name})" if license_name else "",
    )


def _spikes(recipe: Recipe) -> str:
    """What the neurons send."""
    structure, spikes = recipe.structure, recipe.spikes
    if isinstance(spikes, Membrane):
        return f"{spikes.neuron} neurons in substitutes (attention {structure.attention}, mlp {structure.mlp})"
    substitutes = f", substitutes (attention {structure.attention}, mlp {structure.mlp})" if structure.replaces else ""
    ratio = f" of ratio {spikes.ratio:.3g}" if spikes.levels > 1 else ""
    return f"{spikes.coding} coding, {spikes.levels} spike levels{ratio}, {spikes.schedule} thresholds{substitutes}"


def _rest(recipe: Recipe) -> str:
    """What the other modules compute on."""
    if recipe.spike_driven:
        return "real values (the patch embedding sees the image; branches that the recipe keeps compute on decoded values)"
    if recipe.structure.replaces:
        return "decoded values (functions that a neuron's threshold or saturation computes, and branches that the recipe keeps)"
    return "decoded values (normalisation, activation functions); the softmax inside attention does so too"
