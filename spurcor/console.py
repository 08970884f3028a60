"""What a person sees: progress bars and tables on a terminal, plain lines when piped."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from spurcor.sweeps import figures

if TYPE_CHECKING:
    from spurcor.config import TrainConfig
    from spurcor.method import Phase
    from spurcor.sweeps import PointState
    from spurcor.trainer import Progress as RunProgress

T = TypeVar("T")
Rows = Sequence[Mapping[str, Any]]
REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0  # when piped, an epoch is told at most this often
STYLES = {"done": ""} | dict.fromkeys(("failed", "damaged"), "red")
STYLES |= dict.fromkeys(("held", "interrupted", "missing"), "yellow")
PLACES = ("paths.", "sweep=", "site.", "site=", "tracker", "hydra")
MANY_GROUPS = 16  # beyond this the table shows the worst groups only


class PatientConsole(Console):
    """A console whose reader may leave (`| head`) without ending the training.

    Text is shown as it is: a class may be called `cat [/indoor]`, or `:dog:`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Write on into nothing."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminal:
    """The output of a command."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or PatientConsole(quiet=quiet)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, soft_wrap=True, markup=False, emoji=False)

    def trace(self) -> None:
        """The traceback of the exception being handled."""
        self.console.print_exception(max_frames=6)

    @contextmanager
    def watch(self, rows: Callable[[Rows], None]) -> Iterator["Watcher"]:
        """An observer of a training run that shows it here and hands its safe rows on."""
        if not self.console.is_terminal:
            yield Watcher(self, rows, None)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, refresh_per_second=5) as bars:
            yield Watcher(self, rows, bars)

    def result(
        self, result: Mapping[str, Any], directory: Path, how: str, config: "TrainConfig"
    ) -> None:
        """The table of groups, the run's directory, and the way to the trackers' pages."""
        run = result["run"]
        self.say("")
        self.say(f"{run['dataset']} {run['method']} seed {run['seed']}: {how}")
        self.console.print(group_table(result))
        self.say(f"run     {directory}")
        from spurcor.tracking import Trackers

        trackers = Trackers.build(config.tracker, config.paths.outputs)
        for title, address in trackers.addresses.items():
            self.say(f"{title:7} {address}")


class Watcher:
    """Shows a training run; an `Observer` of the trainer."""

    def __init__(
        self, terminal: Terminal, rows: Callable[[Rows], None], bars: Progress | None
    ) -> None:
        self._terminal, self._rows, self._bars = terminal, rows, bars
        self._tasks: dict[str, TaskID] = {}
        self._worst = self._loss = ""
        self._drawn = self._told = 0.0

    def step(self, progress: "RunProgress", phase: "Phase", num_steps: int) -> None:
        """Move the phase's bar, a few times a second."""
        now = time.monotonic()
        if self._bars is None or now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        self._move(phase, progress.epoch * num_steps + progress.step, num_steps, progress)

    def row(self, row: Mapping[str, Any], phase: "Phase") -> None:
        """Tell an epoch."""
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
        """Hand on what a checkpoint holds."""
        self._rows(rows)

    def _move(self, phase: "Phase", done: int, num_steps: int, progress: "RunProgress") -> None:
        assert self._bars is not None
        if phase.name not in self._tasks:
            total = phase.epochs * num_steps
            self._tasks[phase.name] = self._bars.add_task(phase.name, total=total, status="")
        if progress.images:  # losses are looked at now and then, not to wait for the device
            self._loss = f"loss {progress.sums.get('loss', 0.0) / progress.images:.3f}"
        status = f"{self._loss}  {self._worst}"
        self._bars.update(self._tasks[phase.name], completed=done, status=status)


def group_table(result: Mapping[str, Any]) -> Table:
    """Test accuracy of every group and class after each phase and DFR, and the usual summaries."""
    table = Table("test group", title_justify="left")
    table.add_column("count", justify="right")
    columns = dict(result.get("phases", {}))
    columns |= {} if result["test"] is None else {result["run"]["method"]: result}
    columns |= {f"+ DFR {name}": part for name, part in result["dfr"].items() if part["test"]}
    for name in columns:
        table.add_column(name, justify="right")
    reports = [part["test"] for part in columns.values()]
    if not reports:
        return table
    first = reports[0]
    shares = [
        {name: group["accuracy"] for name, group in report["groups"].items()} for report in reports
    ]
    names = [name for name, group in first["groups"].items() if group["count"]]
    if len(names) > MANY_GROUPS:
        names = sorted(names, key=lambda name: shares[0][name] or 0.0)[:MANY_GROUPS]
        table.caption = f"the {MANY_GROUPS} worst of {len(first['groups'])} groups"
    for name in names:
        cells = [percent(share.get(name)) for share in shares]
        table.add_row(name, str(first["groups"][name]["count"]), *cells)
    table.add_section()
    classes = [report.get("classes", {}) for report in reports]  # older results have none
    if all(classes) and len(classes[0]) < min(len(first["groups"]), MANY_GROUPS):
        for name in classes[0]:
            table.add_row(name, "", *(percent(accuracy.get(name)) for accuracy in classes))
        table.add_section()
    labels = [report.get("labels", {}) for report in reports]
    for name in labels[0] if all(labels) else ():
        for key in ("precision", "recall", "f1"):
            cells = [percent(scores.get(name, {}).get(key)) for scores in labels]
            table.add_row(f"{name}: {key}", "", *cells)
    for key in ("worst", "average", "adjusted", "aligned", "conflicting"):
        table.add_row(key, "", *(percent(report[key]) for report in reports))
    for name in next(iter(columns.values()))["tests"]:
        cells = [percent(part["tests"].get(name, {}).get("worst")) for part in columns.values()]
        table.add_row(f"{name}: worst", "", *cells)
    return table


def sweep_table(points: Sequence["PointState"]) -> Table:
    """Status and test worst-group accuracy of every point of a sweep."""
    table = Table("point", "status", "run")
    table.add_column("test worst", justify="right")
    table.add_column("+ DFR", justify="right")
    for point, overrides in zip(points, distinct(points), strict=True):
        cells = [percent(value) for value in figures(point)]
        status = f"{point.status} {point.message}".strip()
        table.add_row(overrides, status, point.run, *cells, style=STYLES.get(point.status))
    return table


def status_table(points: Sequence["PointState"]) -> Table:
    """How far every point of a sweep has come."""
    table = Table("point", "status", "progress", "job", "run")
    for point, overrides in zip(points, distinct(points), strict=True):
        status = f"{point.status} {point.message}".strip()
        job = point.entry["job"] or ""
        cells = (overrides, status, point.progress, job, point.run)
        table.add_row(*cells, style=STYLES.get(point.status))
    return table


def distinct(points: Sequence["PointState"]) -> list[str]:
    """Overrides of each point, without those that all share and those that say where it runs."""
    typed = [point.entry["overrides"] for point in points]
    shared = set.intersection(*map(set, typed)) if len(typed) > 1 else set()
    return [
        " ".join(word for word in words if word not in shared and not word.startswith(PLACES))
        for words in typed
    ]


def percent(fraction: float | None) -> str:
    """A fraction in per cent, as papers print it."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def tracked(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Items one by one, with a bar on a terminal and a line when piped."""
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
