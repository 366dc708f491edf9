"""The README of a converted model, from its configuration and its conversion table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

TEMPLATE = """# {architecture}, converted by vit2snn

A spiking network with the weights of `{source}` ({architecture}, {classes} classes).

* Recipe: T = {timesteps}, {coding} coding, {levels} spike levels{ratio}, {schedule} thresholds.
* {spiking} modules are driven by spikes ({macs:.1f} million multiply-accumulates of the ANN), {analog} compute on decoded
  values (normalisation, activation functions); the softmax inside attention does so too.{ignored}

Load it with `vit2snn.load(FOLDER)`, score it with `vit2snn evaluate FOLDER --data DATA`. The licence is that of the weights
it was made from{license}.
"""


def model_card(config: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    recipe = config["vit2snn"]["recipe"]
    actions = Counter(row["action"] for row in rows)
    license_name = config["pretrained_cfg"].get("license")
    return TEMPLATE.format(
        architecture=config["architecture"],
        source=config["vit2snn"]["source"] or config["architecture"],
        classes=config["num_classes"],
        timesteps=recipe["timesteps"],
        coding=recipe["coding"],
        levels=recipe["levels"],
        ratio=f" of ratio {recipe['ratio']:.3g}" if recipe["levels"] > 1 else "",
        schedule=recipe["schedule"],
        spiking=actions["spiking"],
        analog=actions["analog"],
        macs=sum(row["macs"] for row in rows) / 1e6,
        ignored=f" {actions['ignored']} modules were left as they are by the recipe." if actions["ignored"] else "",
        license=f" ({license_name})" if license_name else "",
    )
