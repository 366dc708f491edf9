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


class CheckpointError(Vit2SnnError):
    """A weight file is missing, unreadable, or does not fit the model."""


class UnsupportedModuleError(Vit2SnnError):
    """A module computes on signals and no conversion rule covers it."""


class RecipeError(Vit2SnnError):
    """A recipe is unknown, unreadable or contradicts itself."""

    exit_code = 2


class DataError(Vit2SnnError):
    """Images or labels cannot be used."""


class ArtifactError(Vit2SnnError):
    """A folder on disk is not a converted model, or cannot be written."""


class OutputExistsError(ArtifactError):
    """The output folder exists already."""

    exit_code = 2


class NothingConvertedError(Vit2SnnError):
    """The conversion would leave the model as it was."""

    exit_code = 3


class QualityGateError(Vit2SnnError):
    """A result is below the quality that the user asked for."""

    exit_code = 3
