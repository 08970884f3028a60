"""Terminal output: lines, progress bars, logs; plain text when piped."""

import functools
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@functools.cache
def log_to_terminal() -> None:
    """Show warnings on stderr; the full log is in the run's train.log."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("spurcor: %(message)s"))
    logger = logging.getLogger("spurcor")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


T = TypeVar("T")


class PatientConsole(Console):
    """A console that lets the command continue if its reader closes the pipe, as `| head` does.

    Text is shown verbatim: a class may be called `cat [/indoor]` or `:dog:`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Discard further output."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminal:
    """The terminal output of a command."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or PatientConsole(quiet=quiet)

    def say(self, text: str) -> None:
        """Print a text without wrapping it."""
        self.console.print(text, soft_wrap=True, markup=False, emoji=False)

    def trace(self) -> None:
        """Print the traceback of the exception being handled."""
        self.console.print_exception(max_frames=6)


def tracked(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Yield the items, with a progress bar on a terminal or the title when piped."""
    console = PatientConsole()
    if not console.is_terminal:
        console.print(title, soft_wrap=True)
        yield from items
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=5) as bars:
        yield from bars.track(items, total=total, description=title)


class RunLog(logging.FileHandler):
    """The handler of train.log; lines that do not fit on a full disk are dropped silently."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore an error of writing; called by logging."""

    def close(self) -> None:
        """Flush and close the file, ignoring a full disk."""
        with suppress(OSError):
            super().close()


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Also write spurcor's log to a file during the block."""
    handler = RunLog(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("spurcor")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
