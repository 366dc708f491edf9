"""The checkpoints of an unfinished fit, small enough to travel between the slices of time in which it is made.

A checkpoint of DeiT-tiny's substitute has 69 MB: weights and the two moments of Adam in float32. Packed, it has 12:

* weights with two axes or more in float16, which rounds them to 11 bits once a slice;
* no first moments: they are zero again, which ten updates mend;
* of second moments the means of rows and of columns, whose outer product takes their place (as in Adafactor, Shazeer and Stern,
  2018).

Learning rates and the order of images go on as they would have. Files have at most 15 MiB, numbered.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit2snn.finetune.checkpoint import BRANCHES, CHECKPOINT

LARGEST = 15 * 2**20
FIRST, SECOND = "exp_avg", "exp_avg_sq"
Documents = dict[str, Any]
"""Checkpoints by the folders that they are in."""


def pack(work: Path, folder: Path, name: str) -> None:
    """Write the checkpoints in and below ``work`` to the files ``NAME.000``, ... of a folder, in place of older ones."""
    documents = {str(path.parent.relative_to(work)): _read(path) for path in work.rglob(CHECKPOINT)}
    if not documents:
        return
    whole = io.BytesIO()
    torch.save(_small(documents), whole)
    content = whole.getvalue()
    parts = [content[start : start + LARGEST] for start in range(0, len(content), LARGEST)]
    for number, part in enumerate(parts):
        (folder / f"{name}.{number:03}.new").write_bytes(part)
    drop(folder, name)
    for number in range(len(parts)):
        (folder / f"{name}.{number:03}.new").rename(folder / f"{name}.{number:03}")


def unpack(folder: Path, name: str, work: Path) -> bool:
    """Write the checkpoints that were packed where they were; whether there are any."""
    parts = sorted(_parts(folder, name))
    if not parts:
        return False
    content = b"".join(part.read_bytes() for part in parts)
    documents = _large(torch.load(io.BytesIO(content), weights_only=True))
    for place, document in documents.items():
        (work / place).mkdir(parents=True, exist_ok=True)
        torch.save(document, work / place / CHECKPOINT)
    return True


def drop(folder: Path, name: str) -> None:
    """Remove what was packed."""
    for part in list(_parts(folder, name)):
        part.unlink()


def _parts(folder: Path, name: str) -> Iterator[Path]:
    return folder.glob(f"{name}.[0-9][0-9][0-9]")


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _small(documents: Documents) -> Documents:
    whole = documents.get(".")
    if whole:
        state = whole["state"]
        state["model"] = {name: _half(value) for name, value in state["model"].items()}
        state["optimizer"]["state"] = {key: _without_moments(own) for key, own in state["optimizer"]["state"].items()}
    for place, document in documents.items():
        if place != ".":
            # Fitted branches only say that they are: the weights are those of the whole network, which came after them.
            state = document["state"]
            state["network"] = None if whole and place == BRANCHES else {k: _half(v) for k, v in state["network"].items()}
    return documents


def _large(documents: Documents) -> Documents:
    whole = documents.get(".")
    if whole:
        state = whole["state"]
        state["model"] = {name: _single(value) for name, value in state["model"].items()}
        state["optimizer"]["state"] = {key: _with_moments(own) for key, own in state["optimizer"]["state"].items()}
    for place, document in documents.items():
        if place != ".":
            state = document["state"]
            found = state["network"]
            state["network"] = whole["state"]["model"] if found is None else {k: _single(v) for k, v in found.items()}
    return documents


def _half(x: Tensor) -> Tensor:
    return x.half() if x.ndim > 1 and x.dtype == torch.float32 else x.clone()


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float16 else x


def _without_moments(own: dict[str, Any]) -> dict[str, Any]:
    if SECOND not in own:
        return own
    second = own[SECOND]
    matrix = second.reshape(-1, second.shape[-1]) if second.ndim else second.reshape(1, 1)
    return own | {FIRST: None, SECOND: [list(second.shape), matrix.mean(1), matrix.mean(0)]}


def _with_moments(own: dict[str, Any]) -> dict[str, Any]:
    if SECOND not in own:
        return own
    shape, rows, columns = own[SECOND]
    # Rows and columns of zeros have had no gradients.
    second = torch.outer(rows, columns / rows.mean().clamp(min=torch.finfo(torch.float32).tiny)).reshape(shape)
    return own | {FIRST: torch.zeros_like(second), SECOND: second}
