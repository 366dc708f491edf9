"""The front matter of a model card: what a hub shows of a model, and finds it by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from timm.models import get_pretrained_cfg, is_model, split_model_name_tag

from ..data.splits import SOUGHT
from ..measure.outputs import WORDS, Output
from ..measure.report.schema import ReadPart

LIBRARY = "vit2snn"
TASKS: dict[Output, str] = {"classes": "image-classification", "features": "image-feature-extraction"}
TAGS = ("spiking-neural-network", "vision-transformer")
LICENSES = frozenset({"apache-2.0", "mit", "cc-by-nc-4.0", "cc-by-4.0", "bsd-3-clause", "gemma", "apple-ascl", "apple-amlr"})
"""Of those that timm names, what a hub knows; it takes others by name only."""
HUB_DATA = ("hfds/", "hfids/")
HUB = "hf-hub:"


def metadata(
    config: Mapping[str, Any], command: Sequence[str] = (), evaluation: Mapping[str, Any] | None = None
) -> ModelCardData:
    """What a hub is told of a model.

    Args:
        config: its ``config.json``.
        command: what was typed to make it.
        evaluation: its ``evaluation.json``, whose last timestep is told; None if it has none.
    """
    classes = config["num_classes"]
    task = TASKS["features"] if classes == 0 else TASKS["classes"] if classes and classes > 1 else None
    license_name = config["pretrained_cfg"].get("license")
    known = license_name in LICENSES
    results = _results(evaluation) if evaluation and "read" in evaluation else None
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=task,
        base_model=_base_model(config.get("vit2snn", {}).get("source", ""), command),
        license=license_name if known or not license_name else "other",
        license_name=None if known else license_name,
        tags=list(TAGS),
        model_name=config["architecture"] if results else None,
        eval_results=results,
    )


def _base_model(source: str, command: Sequence[str]) -> str | None:
    """The repository of the weights that were converted; None if they came from elsewhere, or nothing tells."""
    if any(word.startswith("--checkpoint") for word in command):
        return None
    if source.startswith(HUB):
        return source.removeprefix(HUB).partition("@")[0]
    if not is_model(split_model_name_tag(source)[0]):
        return None
    cfg = get_pretrained_cfg(source)
    return cfg.hf_hub_id if cfg and cfg.hf_hub_id else None


def _results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """The figures at the last timestep, beside the ANN's on the same images."""
    words, last, ann = WORDS[evaluation["output"]], evaluation["snn"][-1], evaluation.get("ann", {})
    at = f"at T = {last['timestep']}"
    figures = [
        ("accuracy", f"{words.top1} {at} (%)", last["top1"]),
        ("accuracy", f"{words.top1} of the ANN (%)", ann.get("top1")),
        ("agreement", f"{words.agreement} with the ANN {at} (%)", last["agreement"]),
    ]
    kind, name = _data_set(evaluation["read"])
    return [
        EvalResult(
            task_type=TASKS[evaluation["output"]],
            dataset_type=kind,
            dataset_name=f"{name}, {evaluation['images']} images",
            dataset_split=evaluation["read"]["split"],
            metric_type=metric,
            metric_name=told,
            metric_value=round(value, 2),
        )
        for metric, told, value in figures
        if value is not None
    ]


def _data_set(read: ReadPart) -> tuple[str, str]:
    """The identifier of the data set on a hub, or ``imagefolder``, and its name, which tells nothing of where it was."""
    data = read["data"]
    if data == "demo":
        return "fashion_mnist", "Fashion-MNIST, embedded"
    for prefix in HUB_DATA:
        if data.startswith(prefix) and not PurePath(place := data.removeprefix(prefix)).anchor and not place.startswith("."):
            return place, place
    parts = [part for part in PurePath(data).parts if part not in {read["split"], *SOUGHT}]
    return "imagefolder", parts[-1] if parts else data
