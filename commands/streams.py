"""The standard streams, which may be closed, full, or know less than all letters."""

from __future__ import annotations

import io
import os
import sys

from vit2snn.errors import Vit2SnnError


def prepare_streams() -> None:
    """Let all that is printed be printable: in an encoding without a letter, its escape is shown.

    Raises:
        Vit2SnnError: there is no standard output.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        raise Vit2SnnError("the standard output is closed: results could not be printed", "send it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def give_up_streams() -> None:
    """Leave what could not be printed: Python would try again at its end, and complain in its own way."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
