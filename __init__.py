"""vit2snn: convert pretrained Vision Transformers from timm into spiking neural networks.

The public names are loaded when they are first used, so that ``import vit2snn`` costs neither torch nor timm.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["Coded", "Membrane", "Recipe", "SpikingModel", "Structure", "converts", "evaluate", "load", "to_spiking"]

_HOME = {
    "Coded": "convert",
    "Membrane": "convert",
    "Recipe": "convert",
    "SpikingModel": "convert",
    "Structure": "convert",
    "converts": "convert",
    "evaluate": "measure",
    "load": "storage",
    "to_spiking": "convert",
}

if TYPE_CHECKING:
    from .convert import Coded, Membrane, Recipe, SpikingModel, Structure, converts, to_spiking
    from .measure import evaluate
    from .storage import load


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
