"""Where progress is shown: on a line of the terminal, or as lines of a file."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol


class Shown(Protocol):
    """What is shown: a text, and the seconds up to it."""

    @property
    def seconds(self) -> float: ...


class Lines:
    """Progress as lines on the standard error stream, fewer and fewer of them."""

    def __init__(self) -> None:
        self.last: Shown | None = None
        self.printed = 0.0

    def show(self, progress: Shown) -> None:
        self.last = progress
        if progress.seconds >= min(1.1 * self.printed, self.printed + 60):
            self.print_last()

    def print_last(self) -> None:
        if self.last is not None:
            print(self.last, file=sys.stderr, flush=True)
            self.last, self.printed = None, self.last.seconds


@contextmanager
def shown(progress: bool | Callable[[Any], None] | None) -> Iterator[Callable[[Any], None]]:
    """A function that shows progress: by default on a line of the terminal, if there is one.

    In a file or a pipe it prints lines: the first, the last, and one whenever the time has grown by
    a tenth, or a minute.
    """
    if callable(progress):
        yield progress
        return
    terminal = sys.stderr.isatty()
    if progress is False or (progress is None and not terminal):
        yield lambda progress: None
    elif terminal and find_spec("rich"):
        from rich.console import Console

        with Console(stderr=True).status("compiling") as status:
            yield lambda progress: status.update(str(progress))
    else:
        lines = Lines()
        yield lines.show
        lines.print_last()
