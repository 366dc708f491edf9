"""How the zoo's architectures enter timm's registry, with what was published about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, register_model

from .network import SpikingTransformer

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Published:
    """An accuracy that somebody published for an architecture; none was measured here.

    Attributes:
        dataset: what it was scored on.
        top1: accuracy in per cent.
        timesteps: T.
        source: paper or repository.
        caveat: what a reader should know before quoting it.
        energy: millijoules for an image, as published (compute only, 45 nm).
    """

    dataset: str
    top1: float
    timesteps: int
    source: str
    caveat: str = ""
    energy: float | None = None


@dataclass(frozen=True)
class Variant:
    """A registered size of an architecture.

    Attributes:
        arguments: of the architecture's class.
        cfg: timm's pretrained configuration: see `imagenet`, `cifar` and `dvs`.
        published: accuracies.
        architecture: the class; set by `register`.
    """

    arguments: Mapping[str, Any]
    cfg: Mapping[str, Any]
    published: tuple[Published, ...] = ()
    architecture: type[SpikingTransformer] = field(default=SpikingTransformer, repr=False)


VARIANTS: dict[str, Variant] = {}
"""All registered variants by name."""


def register(architecture: type[SpikingTransformer], paper: tuple[str, str], variants: Mapping[str, Variant]) -> None:
    """Enter variants into timm's registry and into `VARIANTS`.

    Args:
        architecture: a class of the zoo; its constructor takes ``num_classes`` and ``in_chans``.
        paper: title and arXiv number; the number is empty where there is none.
        variants: by the name for ``timm.create_model``.
    """
    title, arxiv = paper
    common = {"classifier": "head", "first_conv": architecture.first_conv, "crop_pct": 1.0, "paper_name": title}
    common |= {"paper_ids": f"arXiv:{arxiv}"} if arxiv else {}
    for name, variant in variants.items():
        VARIANTS[name] = Variant(variant.arguments, common | dict(variant.cfg), variant.published, architecture)
        register_model(_entry_point(name, architecture))


def _entry_point(name: str, architecture: type[SpikingTransformer]) -> Any:
    def create(pretrained: bool = False, pretrained_cfg: Any = None, **given: Any) -> SpikingTransformer:
        variant = VARIANTS[name]
        model: SpikingTransformer = build_model_with_cfg(
            architecture, name, pretrained, pretrained_cfg=pretrained_cfg or dict(variant.cfg),
            feature_cfg={"out_indices": None, "feature_cls": "getter"}, **{**variant.arguments, **given},
        )  # fmt: skip
        return model

    create.__name__, create.__module__ = name, architecture.__module__
    return create


def imagenet(size: int = 224) -> dict[str, Any]:
    """The configuration of a variant for ImageNet-1k."""
    return {
        "num_classes": 1000, "input_size": (3, size, size), "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
    }  # fmt: skip


def cifar(classes: int = 10) -> dict[str, Any]:
    """The configuration of a variant for CIFAR-10 or CIFAR-100."""
    return {"num_classes": classes, "input_size": (3, 32, 32), "mean": CIFAR_MEAN, "std": CIFAR_STD}


def dvs(size: int = 128, classes: int = 10) -> dict[str, Any]:
    """The configuration of a variant for event frames: counts of the events of two polarities, used as they are."""
    return {"num_classes": classes, "input_size": (2, size, size), "mean": (0.0, 0.0), "std": (1.0, 1.0)}
