"""What launchers with processes of their own do first: the points that are left, as jobs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from spurcor.errors import UserError
from spurcor.sweeps.manifest import Point
from spurcor.system.lock import Held, lock_of, locked


def set_aside_reruns(points: Sequence[Point]) -> list[Point]:
    """The points, after the runs that are to be trained again were moved out of the way.

    It is done once, here: a job would do it again each time that it is requeued.
    """
    return [_set_aside(point) if point.config.rerun else point for point in points]


def batch(points: Sequence[Point], size: int = 1) -> list[list[Point]]:
    """Jobs of what is not done: `size` run directories each, with all points of a directory."""
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
