"""What is recorded of every update: a row of ``metrics.csv``, and TensorBoard's scalars on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import ArtifactError, Vit2SnnError
from ..files import write_whole
from .checkpoint import Workspace

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class Step:
    """An update of the weights that has been made.

    Attributes:
        epoch: from 0.
        step: within the epoch, from 0.
        steps: in an epoch.
        update: in all, from 0.
        updates: in all of the training.
        loss: before the update, the mean over its images in all processes.
        lr: learning rate of the update.
        terms: what the loss is the sum of, by name.
        images_per_second: in all processes, without the time between updates.
    """

    epoch: int
    step: int
    steps: int
    update: int
    updates: int
    loss: float
    lr: float
    terms: Mapping[str, float]
    images_per_second: float


class Metrics:
    """Writes every step into the folder of a training; a context, which closes the files.

    Args:
        workspace: of the training.
        kept: updates that were made before: rows of later ones, from a run that was killed, are cut.

    Raises:
        ArtifactError: the file cannot be written, or what was written before cannot be read.
        Vit2SnnError: TensorBoard is asked for and not installed.
    """

    def __init__(self, workspace: Workspace, kept: int) -> None:
        self.path = workspace.folder / "metrics.csv"
        self.board = _board(workspace.folder / "tensorboard", kept) if workspace.tensorboard else None
        try:
            rows = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{str(self.path)!r} cannot be read: {error}", "move it away, and continue with --resume"
            ) from error
        self.begun = bool(kept and rows)
        write_whole(self.path, "".join(rows[: kept + 1] if self.begun else []))
        self.file = self.path.open("a", encoding="utf-8", buffering=1)  # a row is on disk before the next step begins

    def __call__(self, step: Step) -> None:
        """Record a step.

        Raises:
            ArtifactError: there is no space left.
        """
        columns = {"epoch": step.epoch, "step": step.step, "lr": step.lr, "loss": step.loss, **step.terms}
        columns["images_per_second"] = round(step.images_per_second, 1)
        try:
            if not self.begun:
                self.file.write(",".join(columns) + "\n")
                self.begun = True
            self.file.write(",".join(map(str, columns.values())) + "\n")
        except OSError as error:
            raise ArtifactError(
                f"{str(self.path)!r} cannot be written: {error.strerror or error}", "make room, and continue with --resume"
            ) from error
        if self.board is not None:
            for name, value in columns.items():
                if name not in ("epoch", "step"):
                    self.board.add_scalar(name, value, step.update)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def _board(folder: Path, kept: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise Vit2SnnError("TensorBoard is not installed", "pip install 'vit2snn[tensorboard]', or leave it away") from error
    return SummaryWriter(str(folder), purge_step=kept)
