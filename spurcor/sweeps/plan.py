"""What a sweep would do: its points, which of them are done, and how long the others may take."""

import functools
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from spurcor.errors import UserError
from spurcor.presentation.tables import counted
from spurcor.runs.results import read_result
from spurcor.sweeps.manifest import Point
from spurcor.sweeps.states import PointState, duration, state
from spurcor.sweeps.tables import distinct


def plan_table(points: Sequence[Point]) -> Table:
    """Return a table of points that have not been started, with an estimate of their time."""
    table = Table("point", "run", "status")
    table.add_column("estimate", justify="right")
    found = _states(points)
    for point, one, overrides in zip(points, found, distinct(found), strict=True):
        seconds = None if one.status == "done" else estimated(point)
        cells = (overrides, one.run, one.status, "" if seconds is None else duration(seconds))
        table.add_row(*cells)
    return table


def plan_summary(points: Sequence[Point]) -> str:
    """Return a sentence on how many runs a sweep has, and how long what is left may take."""
    runs = {point.config.directory: point for point in points if not point.done}
    distinct_runs = {point.config.directory for point in points}
    seconds = [estimated(point) for point in runs.values()]
    known = [one for one in seconds if one is not None]
    all_points, all_runs = counted(len(points), "point"), counted(len(distinct_runs), "run")
    text = f"{all_points}, {all_runs}, {len(runs)} of them not done"
    if known:
        text += f"; about {duration(sum(known))} on one process"
    if unknown := len(seconds) - len(known):
        text += f"; no finished run of their data set and method tells how long {unknown} take"
    return text


def estimated(point: Point) -> float | None:
    """Return the median seconds of finished runs of the same data set and method, if any."""
    return _typical(point.config.directory.parents[1])


@functools.cache
def _typical(folder: Path) -> float | None:
    found = []
    for path in folder.glob("*/seed*/done"):
        try:
            found.append(float(read_result(path.parent)["run"]["seconds"]))
        except (UserError, OSError):  # damaged, or being set aside
            continue
    return statistics.median(found) if found else None


def _states(points: Sequence[Point]) -> list[PointState]:
    entries = [
        {**point.entry, "directory": str(point.config.directory), "log": None} for point in points
    ]
    return [state(entry) for entry in entries]
