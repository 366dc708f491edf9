"""How the ANN of an artifact is built again: by ``timm.create_model``, or by code of the user's own that is trusted."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import nn

from ..convert import SpikingModel
from ..convert.registry import own_handlers
from ..errors import ArtifactError

_trusted: ContextVar[str | None] = ContextVar("vit2snn_trusted", default=None)


@contextmanager
def trusting(builder: str) -> Iterator[None]:
    """Within this context, artifacts that name this ``package.module:function`` as their builder are loaded with it."""
    token = _trusted.set(builder)
    try:
        yield
    finally:
        _trusted.reset(token)


def timm_config(ann: nn.Module, path: Path) -> dict[str, Any]:
    """timm's own description of a model, from which `create` makes it again.

    Args:
        ann: made by timm; it may be converted.
        path: of a file, which timm writes.

    Raises:
        ArtifactError: it was not made by timm.
    """
    try:
        save_config_for_hf(ann, str(path))
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        with torch.device("meta"):
            create(config)
    except (AttributeError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ArtifactError(
            f"this model cannot be described by a timm name and arguments: {error}",
            "make the ANN with timm.create_model(NAME, **arguments) (timm.models.register_model registers your own), or name "
            "a function that makes it: save(OUT, builder='package.module:function')",
        ) from error
    return config


def plain_config(ann: nn.Module) -> dict[str, Any]:
    """The same of a model that a builder makes, as far as it tells."""
    cfg, classes = dict(getattr(ann, "pretrained_cfg", None) or {}), getattr(ann, "num_classes", None)
    return {"architecture": type(ann).__name__, "num_classes": classes, "pretrained_cfg": cfg}


def details(snn: SpikingModel) -> dict[str, Any]:
    """What has to be known beside that: the type of weights, the attention modules that are not fused (which users change, and
    which depends on the environment), and the classes that were converted by rules beside the built-in ones."""
    parts = [snn.network, *([snn.teacher.ann] if snn.teacher else [])]
    modules = [pair for part in parts for pair in part.named_modules()]
    return {
        "dtype": str(next(snn.network.parameters()).dtype).removeprefix("torch."),
        "unfused": sorted({name for name, module in modules if getattr(module, "fused_attn", True) is False}),
        "handlers": sorted({module.type for module in snn.plan.modules} & own_handlers()),
    }


def create(config: Mapping[str, Any]) -> nn.Module:
    """The ANN that timm makes of its configuration."""
    arguments = {"num_classes": config["num_classes"], **config.get("model_args", {})}
    cfg = dict(config["pretrained_cfg"])
    model: nn.Module = timm.create_model(config["architecture"], pretrained=False, pretrained_cfg=cfg, **arguments)
    return model


def built(config: Mapping[str, Any], folder: Path, trust: str | None) -> Callable[[], nn.Module]:
    """Makes the ANN of an artifact, with some weights.

    Raises:
        ArtifactError: its builder is not trusted, or cannot be imported.
    """
    section = config["vit2snn"]
    builder = section.get("builder")
    make = _trusted_builder(builder, folder, trust) if builder else lambda: create(config)

    def build() -> nn.Module:
        model = make()
        for name, module in model.named_modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = name not in section["unfused"]
        return model.to(getattr(torch, section["dtype"])).eval()

    return build


def _trusted_builder(builder: str, folder: Path, trust: str | None) -> Callable[[], nn.Module]:
    if builder not in (trust, _trusted.get()):
        raise ArtifactError(
            f"the model in {str(folder)!r} is built by code: {builder}",
            f"if you trust it: vit2snn.load(FOLDER, trust={builder!r}), or vit2snn --trust {builder} COMMAND ...",
        )
    try:
        make: Callable[[], nn.Module] = pkgutil.resolve_name(builder)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"the builder {builder!r} of {str(folder)!r} cannot be imported: {error}", "put its package on the Python path"
        ) from error
    return make


def check_handlers(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse an artifact that was converted with rules which are not registered here.

    Raises:
        ArtifactError: there are such; the message names the class of the first.
    """
    missing = sorted(set(config["vit2snn"].get("handlers") or ()) - own_handlers())
    if missing:
        raise ArtifactError(
            f"the model in {str(folder)!r} was converted with a rule of its own for {missing[0]}, which is not registered",
            "import the module that has @vit2snn.converts(...) for it first",
        )
