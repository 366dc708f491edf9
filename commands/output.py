"""What a command shows: progress, results, notes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vit2snn.commands.processes import is_main
from vit2snn.errors import Vit2SnnError

if TYPE_CHECKING:
    from torch import Tensor

    from vit2snn.convert import Progress


def bar(items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar of the main process on stderr, when that is a terminal."""
    from tqdm import tqdm

    hidden = None if is_main() else True  # None leaves it to the terminal
    return iter(tqdm(items, desc=what, total=total, file=sys.stderr, disable=hidden, leave=False))


class Pass(Sequence[Any]):
    """Batches with a progress bar for each pass over them."""

    def __init__(self, batches: Sequence[Tensor], what: str) -> None:
        self.batches, self.what = batches, what

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        return self.batches[index]

    def __iter__(self) -> Iterator[Tensor]:
        return bar(self.batches, self.what)


@contextmanager
def fit_bar() -> Iterator[Callable[[Progress], None]]:
    """Within this context, a progress bar with the time left that can be handed to `vit2snn.convert.Fitting`."""
    from tqdm import tqdm

    hidden = None if is_main() else True
    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=100, bar_format=shape, file=sys.stderr, disable=hidden, leave=False) as shown:

        def report(progress: Progress) -> None:
            shown.set_description_str(f"fitting {progress.stage}", refresh=False)
            shown.update(100 * progress.done - shown.n)

        yield report


def emit(as_json: bool, document: Any, text: str) -> None:
    """Print a result, as JSON or for reading; processes beside the main one do not.

    Raises:
        Vit2SnnError: whoever reads it has stopped, or there is no room for it.
    """
    if not is_main():
        return
    try:
        click.echo(json.dumps(document) if as_json else text)
    except BrokenPipeError as error:
        raise Vit2SnnError("the result was not printed to its end: what it was sent to has stopped reading") from error
    except OSError as error:
        raise Vit2SnnError(f"the result cannot be printed: {error.strerror or error}") from error


def note(text: str) -> None:
    """Tell something beside the result, on stderr; processes beside the main one do not."""
    if is_main():
        click.echo(text, err=True)
