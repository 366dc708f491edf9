"""The README of a model: a card of its configuration and its conversion table, as hubs show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCard, ModelCardData

from ..convert import Membrane, Recipe
from ..errors import ArtifactError
from ..measure.report.facts import what_was_read
from ..measure.report.schema import Evaluation, Run, ZooEvaluation
from ..reading import parsed, read_json
from .metadata import metadata
from .schema import Config, ZooConfig

README = "README.md"

TEMPLATE = """# {architecture}, converted by vit2snn

A spiking network with the weights of `{source}` ({architecture}, {output}).

* Recipe: T = {timesteps}, {spikes}{weights}.{read}
* {spiking} modules are driven by spikes ({macs:.1f} million multiply-accumulates), {analog} compute on {rest}.{ignored}

Load it with `vit2snn.load(FOLDER)`, score it with `vit2snn evaluate FOLDER --data DATA`; on a hub, FOLDER is
`hf-hub:USER/NAME`. The licence is that of the weights it was made from{license}.
"""

OF_ZOO = """# {architecture}, of the zoo of vit2snn

A spiking network with {output}.

Load it with `vit2snn.storage.open_network(FOLDER)`, score it with `vit2snn evaluate FOLDER --data DATA`; on a hub, FOLDER is
`hf-hub:USER/NAME`.
"""


def model_card(config: Mapping[str, Any], rows: list[dict[str, Any]], run: Mapping[str, Any]) -> str:
    """Markdown, with a front matter for hubs.

    Args:
        config: ``config.json`` of a converted model.
        rows: its ``conversion.json``.
        run: its ``run.json``; empty if there is none.
    """
    return _joined(metadata(config, run.get("command", ())), _body(config, rows, run))


def shared_card(folder: Path) -> str:
    """The card of a model as it is pushed to a hub: with the figures of its evaluation, if it has one.

    What has been written by hand into its README stays: the text, and entries of the front matter that are not ours.

    Raises:
        ArtifactError: a document in the folder is damaged, or the front matter of its README is.
    """
    converted = "vit2snn" in parsed(folder / "config.json")
    config = dict(read_json(folder / "config.json", Config if converted else ZooConfig))
    run, evaluation = folder / "run.json", folder / "evaluation.json"
    kind = Evaluation if converted else ZooEvaluation
    ours = metadata(
        config,
        read_json(run, Run).get("command", ()) if run.is_file() else (),
        dict(read_json(evaluation, kind, "evaluate the model again")) if evaluation.is_file() else None,
    )
    theirs, body = _split(folder / README) if (folder / README).is_file() else ({}, _body_of_zoo(config))
    tags = [*theirs.get("tags", ()), *(ours.tags or ())]
    return _joined(ModelCardData(**(theirs | _entries(ours) | {"tags": tags})), body)


def _joined(data: ModelCardData, body: str) -> str:
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _entries(data: CardData) -> dict[str, Any]:
    entries: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return entries


def _split(path: Path) -> tuple[dict[str, Any], str]:
    """The front matter of a README, empty if it has none, and its text."""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.startswith("---\n"):
            return {}, text
        card = ModelCard(text)
        return _entries(card.data), card.text.lstrip("\n")
    except Exception as error:  # of the library that reads YAML, too
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{str(path)!r} has no front matter that can be read: {reason}", "correct or remove it") from error


def _body_of_zoo(config: Mapping[str, Any]) -> str:
    return OF_ZOO.format(architecture=config["architecture"], output=_output(config["num_classes"]))


def _body(config: Mapping[str, Any], rows: list[dict[str, Any]], run: Mapping[str, Any]) -> str:
    recipe = Recipe.from_json(config["vit2snn"]["recipe"])
    actions = Counter(row["action"] for row in rows)
    license_name, read = config["pretrained_cfg"].get("license"), run.get("read")
    return TEMPLATE.format(
        architecture=config["architecture"],
        source=config["vit2snn"]["source"] or config["architecture"],
        output=_output(config["num_classes"]),
        timesteps=recipe.timesteps,
        spikes=_spikes(recipe),
        weights=f", weights of {recipe.weight_bits}-bit integers" if recipe.weight_bits else "",
        read=f"\n* Calibrated on images of `{what_was_read(read)}`." if read else "",
        spiking=actions["spiking"],
        analog=actions["analog"],
        macs=sum(row["macs"] for row in rows if row["action"] == "spiking") / 1e6,
        rest=_rest(recipe),
        ignored=f" {actions['ignored']} modules were left as they are by the recipe." if actions["ignored"] else "",
        license=f" ({license_name})" if license_name else "",
    )


def _output(classes: int | None) -> str:
    """What the network puts out; of a module that does not say how many classes it has, nothing is known."""
    return {None: "output of its own", 0: "features and no classes", 1: "one number"}.get(classes, f"{classes} classes")


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
