"""The points of a sweep, written down before any of them starts."""

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
    """One run of a sweep, and the job that it was given to."""

    overrides: tuple[str, ...]
    config: TrainConfig
    job: str | None = None  # SLURM job, with the index of an array: 123_4
    log: Path | None = None  # what its process prints

    @property
    def entry(self) -> dict[str, Any]:
        """Its line in the manifest; places are relative to the outputs folder, which may move."""
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
        """Identifies it among the sweep's points, some of which may repair the same run."""
        return (str(self.config.directory), *self.config.needs)

    @property
    def done(self) -> bool:
        """Whether everything it requests is on disk."""
        return has_all(self.config.directory, self.config.needs)


def sweep_folder(config: TrainConfig) -> Path:
    """Where a sweep keeps its manifest, points and code."""
    return config.paths.outputs / "sweeps" / config.sweep


def manifest(outputs: Path, name: str) -> list[dict[str, Any]]:
    """The points of a sweep, in the order of their first request; a later line updates one."""
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
    """Add points to their sweep's manifest, or what is new about those that are there."""
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
    """The lines of a manifest, the last of each point."""
    lines = read_lines(path, Entry, "remove that line and run the sweep again")
    return {key_of(entry): entry for entry in lines}


def key_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Points that repair one run in two ways share its directory, but not what they need."""
    return (entry["directory"], *entry["needs"])


def open_sweep(points: Sequence[Point]) -> None:
    """Create the trackers' stores and the sweep's own record before any point starts.

    A run that another sweep has finished is shown in this one too.
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
