"""Graphs as programs of `torch.export`, and as files: PyTorch's own (pt2), or ONNX."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..errors import ExportError
from .graph import RunGraph, State, StepGraph

OPSET = 20
"""Of ONNX."""
IMAGES, TIMESTEP, LOGITS, NEXT = "images", "timestep", "logits", "_next"
"""Inputs and outputs; a state's output is its name with ``_next`` behind it."""
MANY = 2
"""Images that a program is traced with: of one, torch would not find out along which axes there may be more."""


def traced(graph: RunGraph | StepGraph, image: Tensor, frames: bool) -> ExportedProgram:
    """The program of a graph, for any number of images.

    Args:
        graph: of a run, or of a timestep.
        image: ``[1, C, H, W]``, of any values.
        frames: whether a run gets a frame for each timestep, ``[T, B, C, H, W]``.

    Raises:
        ExportError: a module does what no graph can; the message has torch's reason.
    """
    images = image.expand(MANY, *image.shape[1:]).clone()
    batch = Dim("batch", min=1)
    arguments: tuple[Any, ...] = (images,)
    shapes: tuple[Any, ...] = ({0: batch},)
    if isinstance(graph, StepGraph):
        states = [torch.zeros(MANY, *state.shape) for state in graph.states]
        arguments = images, torch.tensor(1), states
        shapes = {0: batch}, None, [{0: batch}] * len(states)
    elif frames:
        arguments, shapes = (images.expand(graph.timesteps, *images.shape).clone(),), ({1: batch},)
    try:
        with torch.no_grad():
            return torch.export.export(graph, arguments, dynamic_shapes=shapes)
    except Exception as error:  # what torch raises of what it cannot trace has no common base
        raise ExportError(f"the network is no graph that torch.export can trace: {_first_line(error)}") from error


def write_pt2(program: ExportedProgram, path: Path, told: Mapping[str, Any]) -> None:
    """As `torch.export.load` reads it; ``told`` is in the extra file ``vit2snn.json``."""
    torch.export.save(program, path, extra_files={"vit2snn.json": json.dumps(told)})


def check_onnx() -> None:
    """Refuse what would fail at the end.

    Raises:
        ExportError: a package is missing.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ExportError(f"ONNX needs the package {package!r}: {error}", "pip install 'vit2snn[onnx]'") from error


def write_onnx(program: ExportedProgram, path: Path, states: list[State], told: Mapping[str, Any]) -> None:
    """As ONNX of opset 20; above 2 GB the weights are in a file beside it. ``told`` is in the metadata, under ``vit2snn``.

    Raises:
        ExportError: ONNX lacks an operator; the message names it and its module.
    """
    names = [state.name for state in states]
    inputs = [IMAGES, TIMESTEP, *names] if names or _is_step(program) else [IMAGES]
    try:
        with _quiet():
            written = torch.onnx.export(
                program, input_names=inputs, output_names=[LOGITS, *(name + NEXT for name in names)], opset_version=OPSET,
                dynamo=True, verbose=False, optimize=False,
            )  # fmt: skip
            assert written is not None
            _fold_constants(written.model)
    except ImportError as error:
        missing = f"ONNX needs a package that is not installed: {error.name or error}"
        raise ExportError(missing, "pip install 'vit2snn[onnx]'") from error
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"ONNX has no form of {_culprit(error, program)}", "export it with --format pt2") from error
    written.model.metadata_props["vit2snn"] = json.dumps(told)
    written.save(path)


def _fold_constants(model: Any) -> None:
    """Compute beforehand what does not depend on the input, in place, and leave integers as they are."""

    def folds(node: Any) -> bool | None:
        types = (given.dtype for given in node.inputs if given is not None)
        return False if any(found is not None and found.name == "INT8" for found in types) else None

    importlib.import_module("onnxscript.optimizer").optimize_ir(model, should_fold=folds)


def _is_step(program: ExportedProgram) -> bool:
    return len(program.graph_signature.user_inputs) > 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints and warns of as it goes."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _culprit(error: BaseException, program: ExportedProgram) -> str:
    """What a failure of the exporter is about: an operator, and the module that calls it where it can be told."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    found = re.search(r"op='([\w.]+)'", str(cause))
    if found is None:
        return _first_line(cause)
    operator = found[1]
    for node in program.graph.nodes:  # which has it perhaps by another name, of which the exporter has made it
        modules = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
        if modules and operator.rpartition(".")[2] in str(node.target):
            return f"{operator}, which module {modules[-1].removeprefix('network.').removeprefix('network.')!r} calls"
    return operator


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
