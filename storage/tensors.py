"""Tensors on disk, as safetensors, which may be damaged or a stranger's: compared with their model before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ArtifactError
from ..spiking import Balanced, CodedNeuron
from ..spiking.balanced import TABLES as BALANCED
from ..spiking.neuron import TABLES as CODED

LARGEST_HEADER = 16 * 2**20
"""Bytes of names, shapes and types: a tensor takes some 150 of them."""

CALIBRATED = {CodedNeuron: CODED, Balanced: BALANCED}
"""Tables whose shapes are known from calibration only."""

Shapes = dict[str, tuple[int, ...]]


def write_tensors(module: nn.Module, path: Path) -> None:
    """Write the state of a module."""
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
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
    wanted = module.state_dict()
    free = {f"{name}.{table}" for name, part in module.named_modules() for table in CALIBRATED.get(type(part), ())}
    _check_shapes(shapes(path, hint), wanted, free, path, hint)
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in wanted}
    for name, tensor in found.items():
        _check_values(tensor, wanted[name], f"{str(path)!r} is damaged: {name}", hint)
    module.load_state_dict(found)


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


def _check_values(tensor: Tensor, wanted: Tensor, told: str, hint: str) -> None:
    if tensor.is_floating_point() != wanted.is_floating_point() or tensor.is_complex():
        raise ArtifactError(f"{told} holds {tensor.dtype}, expected {wanted.dtype}", hint)
    if tensor.is_floating_point() and bool(tensor.isnan().any()):
        raise ArtifactError(f"{told} holds a value that is no number", hint)
