"""Tensors on disk, as safetensors, which may be damaged or a stranger's: compared with their model before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ArtifactError
from ..spiking import Balanced, CodedNeuron, Integers, integer_weights
from ..spiking.balanced import TABLES as BALANCED
from ..spiking.neuron import TABLES as CODED
from ..spiking.substitutes import RectifiedSoftmax

LARGEST_HEADER = 16 * 2**20
"""Bytes of names, shapes and types: a tensor takes some 150 of them."""

CALIBRATED: Mapping[type[nn.Module], tuple[str, ...]] = {
    CodedNeuron: CODED, Balanced: BALANCED, RectifiedSoftmax: ("shut",)
}  # fmt: skip
"""Tables whose shapes are known from calibration only."""

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
"""What safetensors calls them."""

Shapes = dict[str, tuple[int, ...]]


def write_tensors(module: nn.Module, path: Path) -> None:
    """Write the state of a module; weights of integers as these (see `vit2snn.spiking.integers`)."""
    state = module.state_dict()
    state |= {name: weight.integers.integers(weight.parameter) for name, weight in integer_weights(module).items()}
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    save_file(whole, path, metadata={"format": "pt"})


def shapes(path: Path, hint: str) -> Shapes:
    """The shapes of the tensors in a file, by name; the tensors are not read.

    Raises:
        ArtifactError: the file is missing, or is none of safetensors.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(LARGEST_HEADER, path.stat().st_size):
            raise ValueError(f"it gives {header} bytes for its header, and has {path.stat().st_size}")
        with safe_open(path, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArtifactError(f"{str(path)!r} cannot be read: {reason}", hint) from error


def dtype_of(path: Path, hint: str) -> torch.dtype:
    """The type of the first numbers in a file; float32 where it has none.

    Raises:
        ArtifactError: as of `shapes`.
    """
    names = shapes(path, hint)
    with safe_open(path, "pt") as tensors:
        types = (tensors.get_slice(name).get_dtype() for name in names)
        return next((TYPES[found] for found in types if found in TYPES), torch.float32)


def read_tensors(module: nn.Module, path: Path, hint: str) -> None:
    """Give a module the state in a file.

    Args:
        module: its neurons take tables of whatever shape (see `CALIBRATED`).
        path: of the file.
        hint: what to do where it does not fit.

    Raises:
        ArtifactError: the file cannot be read, or its tensors are not those of the module, by name, shape and type, or not
            numbers; the message names the tensor.
    """
    wanted, whole = module.state_dict(), integer_weights(module)
    free = {
        f"{name}.{table}"
        for name, part in module.named_modules()
        for kind, tables in CALIBRATED.items()
        for table in (tables if isinstance(part, kind) else ())
    }
    _check_shapes(shapes(path, hint), wanted, free, path, hint)
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in wanted}
    for name, tensor in found.items():
        told = f"{str(path)!r} is damaged: {name}"
        if name in whole:
            _check_integers(tensor, whole[name].integers, told, hint)
        else:
            _check_values(tensor, wanted[name], told, hint)
    module.load_state_dict({name: tensor for name, tensor in found.items() if name not in whole}, strict=False)
    with torch.no_grad():
        for name, weight in whole.items():
            weight.parameter.copy_(weight.integers.weight(found[name], weight.parameter.dtype))


def _check_shapes(found: Shapes, wanted: Mapping[str, Tensor], free: set[str], path: Path, hint: str) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is not in the model" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(value.shape)}"
        for name, value in wanted.items()
        if name in found and name not in free and found[name] != tuple(value.shape)
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ArtifactError(f"{str(path)!r} does not fit the model: {problems[0]}{more}", hint)


def _check_integers(tensor: Tensor, integers: Integers, told: str, hint: str) -> None:
    if tensor.dtype != torch.int8:
        raise ArtifactError(f"{told} holds {tensor.dtype}, expected torch.int8", hint)
    if bool((tensor.abs() > integers.most).any() | (tensor < -integers.most).any()):
        raise ArtifactError(f"{told} holds integers beyond {integers.most}, the most of {integers.bits} bits", hint)


def _check_values(tensor: Tensor, wanted: Tensor, told: str, hint: str) -> None:
    if tensor.is_floating_point() != wanted.is_floating_point() or tensor.is_complex():
        raise ArtifactError(f"{told} holds {tensor.dtype}, expected {wanted.dtype}", hint)
    if tensor.is_floating_point() and bool(tensor.isnan().any()):
        raise ArtifactError(f"{told} holds a value that is no number", hint)
