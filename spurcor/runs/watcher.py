"""Progress of a training run: bars on a terminal, lines when piped, rows for the trackers."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from spurcor.system.terminal import Terminal
from spurcor.training.method import Phase
from spurcor.training.progress import Progress as RunProgress

Rows = Sequence[Mapping[str, Any]]
REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0  # when piped, epochs are printed at most this often


@contextmanager
def watch(terminal: Terminal, rows: Callable[[Rows], None]) -> Iterator["Watcher"]:
    """Yield an observer that shows training on the terminal and passes checkpointed rows on."""
    if not terminal.console.is_terminal:
        yield Watcher(terminal, rows, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal.console, refresh_per_second=5) as bars:
        yield Watcher(terminal, rows, bars)


class Watcher:
    """Shows the progress of a training run; an `Observer` of the trainer."""

    def __init__(
        self, terminal: Terminal, rows: Callable[[Rows], None], bars: Progress | None
    ) -> None:
        self._terminal, self._rows, self._bars = terminal, rows, bars
        self._tasks: dict[str, TaskID] = {}
        self._worst = self._loss = ""
        self._drawn = self._told = 0.0

    def step(self, progress: RunProgress, phase: Phase, num_steps: int) -> None:
        """Advance the phase's bar, at most once per `REDRAW_SECONDS`."""
        now = time.monotonic()
        if self._bars is None or now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        self._move(phase, progress.epoch * num_steps + progress.step, num_steps, progress)

    def row(self, row: Mapping[str, Any], phase: Phase) -> None:
        """Show the loss and worst-group accuracy of a finished epoch."""
        worst = row.get("val/worst")
        self._worst = "" if worst is None else f"val worst {worst:.3f}"
        loss = row.get("train/loss")
        self._loss = text = f"loss {loss:.3f}" if loss is not None else ""
        if self._bars is not None and (task := self._tasks.get(phase.name)) is not None:
            total = self._bars.tasks[task].total or 0
            done = total * row["epoch"] / phase.epochs
            self._bars.update(task, completed=done, status=f"{text}  {self._worst}")
        now = time.monotonic()
        last = row["epoch"] == phase.epochs
        if self._bars is None and (last or now - self._told >= LINE_SECONDS):
            self._told = now
            self._terminal.say(
                f"{phase.name} epoch {row['epoch']}/{phase.epochs}  {text}  {self._worst}"
            )

    def rows(self, rows: Rows) -> None:
        """Pass on the rows that a checkpoint holds."""
        self._rows(rows)

    def _move(self, phase: Phase, done: int, num_steps: int, progress: RunProgress) -> None:
        assert self._bars is not None
        if phase.name not in self._tasks:
            total = phase.epochs * num_steps
            self._tasks[phase.name] = self._bars.add_task(phase.name, total=total, status="")
        if progress.images:  # read only at redraws, as reading waits for the device
            self._loss = f"loss {progress.sums.get('loss', 0.0) / progress.images:.3f}"
        status = f"{self._loss}  {self._worst}"
        self._bars.update(self._tasks[phase.name], completed=done, status=status)
