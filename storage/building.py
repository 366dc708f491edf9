"""How the ANN of an artifact is built again: by ``timm.create_model``, or by code of the user's own that is trusted."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model
from timm.models._hub import save_config_for_hf
from torch import nn
from torch.overrides import TorchFunctionMode

from ..convert import SpikingModel
from ..convert.registry import own_handlers
from ..errors import ArtifactError
from .schema import Config
from .tensors import shapes

WEIGHTS = "model.safetensors"
OPENING = frozenset({"checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"})
"""Arguments of ``timm.create_model`` that are about files and hubs."""
CALLS = 100
"""Calls of torch that making a model may take for each of its tensors, and tensors that it may have beyond its own."""
SPARE = 256 * 2**20
"""Bytes of what is made with a model, and is no weight: masks, positions."""
FOREIGN = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, ImportError)
"""What models of others raise where their arguments or inputs are none."""

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
    except FOREIGN as error:
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
    """The model that timm makes of its configuration, with random weights; nothing is opened for it.

    Raises:
        ValueError: it names no architecture of timm, or an argument that opens files.
    """
    architecture, arguments = config["architecture"], {"num_classes": config["num_classes"], **config.get("model_args", {})}
    if not is_model(architecture):  # of which timm would make addresses of hubs, and paths
        raise ValueError(f"timm has no architecture {architecture!r}")
    for name in arguments:
        if name in OPENING:
            raise ValueError(f"model_args.{name} is no argument of an architecture: it has timm open files")
    cfg = dict(config["pretrained_cfg"])
    model: nn.Module = timm.create_model(architecture, pretrained=False, pretrained_cfg=cfg, **arguments)
    return model


def check_size(config: Mapping[str, Any], weights: Path, hint: str) -> None:
    """Refuse a model that cannot be made, or would be far larger than its weights; it is made without memory for this.

    Args:
        config: of `create`.
        weights: file of all its weights.
        hint: what to do.

    Raises:
        ArtifactError: the model is refused, or the file cannot be read.
    """
    file, tensors = str(weights.with_name("config.json")), len(shapes(weights, hint))
    try:
        _check_colours(config["pretrained_cfg"])
        with torch.device("meta"), _AtMost(CALLS * (tensors + CALLS)):
            model = create(config)
        size = sum(value.numel() * value.element_size() for value in chain(model.parameters(), model.buffers()))
    except FOREIGN as error:
        raise ArtifactError(f"{file!r} describes no model: {reason(error)}", hint) from error
    if size > 4 * weights.stat().st_size + SPARE:
        raise ArtifactError(f"{file!r} describes a model of {size} bytes, and {str(weights)!r} has far less", hint)


def _check_colours(cfg: Mapping[str, Any]) -> None:
    """Refuse means and deviations that are not those of the channels of an image."""
    channels = {1, 3, cfg.get("input_size", (3,))[0]}
    for name in ("mean", "std"):
        if name in cfg and len(cfg[name]) not in channels:
            raise ValueError(f"pretrained_cfg.{name} has {len(cfg[name])} values, expected one for each channel")


def reason(error: Exception) -> str:
    """What a foreign exception says, in a line."""
    said = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__} {said}".rstrip() if isinstance(error, LookupError) or not said else said


class _AtMost(TorchFunctionMode):
    """Within this context, torch is called so often at most: models of endless depth are not made to the end."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it has far more parts than there are weights")
        return func(*args, **(kwargs or {}))


def built(config: Config, folder: Path, trust: str | None, hint: str) -> Callable[[], nn.Module]:
    """Makes the ANN of an artifact, with some weights.

    Raises:
        ArtifactError: its builder is not trusted, or cannot be imported, or timm does not make a model of that size.
    """
    section, builder = config["vit2snn"], config["vit2snn"]["builder"]
    if builder:
        make = _trusted_builder(builder, folder, trust)
    else:
        check_size(config, folder / WEIGHTS, hint)
        make = partial(create, config)

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


def check_handlers(config: Config, folder: Path) -> None:
    """Refuse an artifact that was converted with rules which are not registered here.

    Raises:
        ArtifactError: there are such; the message names the class of the first.
    """
    missing = sorted(set(config["vit2snn"]["handlers"]) - own_handlers())
    if missing:
        raise ArtifactError(
            f"the model in {str(folder)!r} was converted with a rule of its own for {missing[0]}, which is not registered",
            "import the module that has @vit2snn.converts(...) for it first",
        )
