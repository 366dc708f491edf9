"""What is said when a command does not end well, and the exit code for it. Everything that can go wrong comes by here."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from vit2snn.errors import Vit2SnnError, is_out_of_memory

INTERRUPTED, TERMINATED = 130, 143  # as shells have it: 128 and the number of the signal


class Terminated(SystemExit):
    """Somebody has asked the process to end; where nothing else is done about it, it does."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextmanager
def terminable() -> Iterator[None]:
    """Within this context SIGTERM raises `Terminated`, so that what is half-done is cleared away as after Ctrl-C.

    Whichever of the two was asked for is raised, also where a library that was being imported has made another error of it.
    """
    handlers = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    mine = threading.current_thread() is threading.main_thread()
    replaced = {number: handler for number, handler in handlers.items() if mine and signal.getsignal(number) == handler}
    asked: list[BaseException] = []

    def end(number: int, frame: FrameType | None) -> None:
        asked.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise asked[-1]

    try:
        for number in replaced:
            signal.signal(number, end)
        yield
    except Exception as error:
        if asked:
            raise asked[0] from error
        raise
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def tell(error: BaseException) -> int:
    """Say what has happened, on stderr; the exit code."""
    if isinstance(error, Terminated):
        return _say(TERMINATED, "terminated; nothing half-written is left")
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _say(INTERRUPTED, "interrupted; nothing half-written is left")
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, Vit2SnnError):
        return _say(error.exit_code, f"Error: {error}", error.hint)
    if isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
        return _say(1, f"Error: memory ran out: {_line(error) or 'of the host'}", "lower --batch-size")
    if isinstance(error, OSError) and error.strerror:
        where = repr(str(error.filename)) if error.filename is not None else "a file or a device"
        return _say(1, f"Error: {where} cannot be used: {error.strerror}")
    return _say(1, *fault(error))


def fault(error: BaseException) -> tuple[str, str]:
    """What is said of an error that nobody has thought of, and the hint."""
    said = f"Error: this is a fault of vit2snn: {type(error).__name__}: {_line(error)}"
    return said, "please report it, with what vit2snn env prints, and with the traceback of vit2snn --debug COMMAND"


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _say(code: int, said: str, hint: str = "") -> int:
    click.echo(said, err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
    return code
