"""Preparation of launchers that start processes: set reruns aside, batch points into jobs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from spurcor.errors import UserError
from spurcor.sweeps.manifest import Point
from spurcor.system.lock import Held, lock_of, locked


def set_aside_reruns(points: Sequence[Point]) -> list[Point]:
    """Move runs that are to be retrained aside and return the points without `rerun`.

    This is done once, here, because a job would repeat it after every requeue. Raises UserError if
    another process uses such a run.
    """
    return [_set_aside(point) if point.config.rerun else point for point in points]


def batch(points: Sequence[Point], size: int = 1) -> list[list[Point]]:
    """Return jobs of unfinished points: `size` run directories each, with all their points."""
    runs: dict[Path, list[Point]] = {}
    for point in points:
        if not point.done:
            runs.setdefault(point.config.directory, []).append(point)
    listed = list(runs.values())
    batches = [listed[first : first + size] for first in range(0, len(listed), size)]
    return [[point for run in batch for point in run] for batch in batches]


def _set_aside(point: Point) -> Point:
    from spurcor.runs.execute import set_aside

    directory, outputs = point.config.directory, point.config.paths.outputs
    try:
        with locked(lock_of(directory), outputs / ".guard"):
            set_aside(directory)
    except Held as held:
        raise UserError(f"rerun=true: {directory} is being worked on by {held}") from held
    return dataclasses.replace(point, config=dataclasses.replace(point.config, rerun=False))
