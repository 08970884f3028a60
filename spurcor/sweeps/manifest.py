"""The manifest of a sweep: its points, recorded before any of them starts."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spurcor.config.schema import TrainConfig
from spurcor.errors import UserError
from spurcor.runs.lookup import has_all, read_config
from spurcor.system.files import append_lines, cannot_write, read_lines
from spurcor.system.shapes import Entry


@dataclass(frozen=True)
class Point:
    """One run of a sweep, and the job that it was assigned to."""

    overrides: tuple[str, ...]
    config: TrainConfig
    job: str | None = None  # SLURM job id, e.g. 123, or 123_4 in an array
    log: Path | None = None  # output of its process

    @property
    def entry(self) -> dict[str, Any]:
        """The point's line in the manifest.

        Paths are relative to the outputs folder, which may move.
        """
        outputs = self.config.paths.outputs
        return {
            "overrides": list(self.overrides),
            "identity": self.config.identity,
            "seed": self.config.seed,
            "directory": str(self.config.directory.relative_to(outputs)),
            "needs": self.config.needs,
            "job": self.job,
            "log": None if self.log is None else str(self.log.relative_to(outputs)),
        }

    @property
    def key(self) -> tuple[str, ...]:
        """Run directory and required files, which identify the point in its sweep.

        Points that repair the same run differ in the required files.
        """
        return (str(self.config.directory), *self.config.needs)

    @property
    def done(self) -> bool:
        """Whether all requested files are on disk."""
        return has_all(self.config.directory, self.config.needs)


def sweep_folder(config: TrainConfig) -> Path:
    """Return the folder with the manifest, frozen points and frozen code of a sweep."""
    return config.paths.outputs / "sweeps" / config.sweep


def manifest(outputs: Path, name: str) -> list[dict[str, Any]]:
    """Return the entries of a sweep's points, in the order of first request, with absolute paths.

    A later line of the same point replaces an earlier one. Raises UserError if there is no such
    sweep.
    """
    path = outputs / "sweeps" / name / "points.jsonl"
    if not path.exists():
        found = sorted(p.parent.name for p in (outputs / "sweeps").glob("*/points.jsonl"))
        raise UserError(
            f"sweep={name} does not exist in {outputs}, which has {', '.join(found) or 'none'}"
        )
    return [
        {
            **entry,
            "directory": str(outputs / entry["directory"]),
            "log": entry["log"] and str(outputs / entry["log"]),
        }
        for entry in _entries(path).values()
    ]


def write_manifest(points: Sequence[Point]) -> None:
    """Append new points, and known points with a new job, to their sweep's manifest."""
    path = sweep_folder(points[0].config) / "points.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise cannot_write(points[0].config.paths.outputs, error) from error
    known = _entries(path)
    entries = {key_of(point.entry): point.entry for point in points}
    fresh = [
        entry
        for key, entry in entries.items()
        if key not in known or (entry["log"] and entry != known[key])
    ]
    append_lines(path, fresh)


def _entries(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the last line of each point in a manifest, by key."""
    lines = read_lines(path, Entry, "remove that line and run the sweep again")
    return {key_of(entry): entry for entry in lines}


def key_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the key of a manifest entry, as `Point.key`."""
    return (entry["directory"], *entry["needs"])


def open_sweep(points: Sequence[Point]) -> None:
    """Create the trackers' stores and the sweep's own record before any point starts.

    Runs that another sweep has finished are shown in this one, too.
    """
    from contextlib import ExitStack

    from spurcor.tracking import Record, Trackers

    config = points[0].config
    with ExitStack() as stack:
        trackers = Trackers.open(config, stack)
        record = Record.of_sweep(sweep_folder(config))
        trackers.start(record)
        trackers.finish(record, "FINISHED")
        for directory in dict.fromkeys(point.config.directory for point in points if point.done):
            if (before := read_config(directory)).sweep != config.sweep:
                also = dataclasses.replace(before, sweep=config.sweep)
                trackers.start(Record.of_run(directory, also))
