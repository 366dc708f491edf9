"""What can go wrong for a user, and the exit code of the command line for it.

Every error carries a ``hint``: the command or argument that resolves it.
"""

from __future__ import annotations


class Vit2SnnError(Exception):
    """A known failure. ``str(error)`` says what was got and what was expected; ``hint`` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ModelError(Vit2SnnError):
    """The model is unknown, or it computes values that are not finite."""


class DivergedError(ModelError):
    """A training has come to a loss or gradients that are not finite."""


class CheckpointError(Vit2SnnError):
    """A weight file is missing, unreadable, or does not fit the model."""


class UnsupportedModuleError(Vit2SnnError):
    """A module computes on signals and no conversion rule covers it."""


class RecipeError(Vit2SnnError):
    """A recipe is unknown, unreadable or contradicts itself."""

    exit_code = 2


class SearchError(Vit2SnnError):
    """What is searched for cannot exist, or a file is not of this search."""

    exit_code = 2


class OutOfMemoryError(Vit2SnnError):
    """The images that are computed together need more memory than there is."""


class DataError(Vit2SnnError):
    """Images or labels cannot be used."""


class ArtifactError(Vit2SnnError):
    """A folder on disk is not a converted model, or cannot be written."""


class ExportError(Vit2SnnError):
    """A network, or a part of it, cannot be said in a format."""


class HubError(Vit2SnnError):
    """The Hugging Face hub cannot be reached, does not have what is asked for, or does not let it be done."""


class OutputExistsError(ArtifactError):
    """The output folder exists already."""

    exit_code = 2


class NothingConvertedError(Vit2SnnError):
    """The conversion would leave the model as it was."""

    exit_code = 3


class QualityGateError(Vit2SnnError):
    """A result is below the quality that the user asked for."""

    exit_code = 3


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no more memory, on a GPU or on the host."""
    if isinstance(error, MemoryError):
        return True
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, Exception) and should_reduce_batch_size(error)
