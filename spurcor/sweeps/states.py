"""The state of each point of a sweep, from its files and from SLURM."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spurcor.errors import UserError
from spurcor.runs.lookup import has_all
from spurcor.sweeps import slurm
from spurcor.sweeps.manifest import key_of, manifest
from spurcor.system.files import read_json, tail
from spurcor.system.lock import holder, lock_of
from spurcor.system.shapes import Plan

PointStatus = Literal[
    "done", "running", "queued", "held", "failed", "pruned", "interrupted", "missing", "damaged"
]
UNDER_WAY = ("queued", "running")


@dataclass(frozen=True)
class PointState:
    """State of a point, with a message and its progress."""

    entry: Mapping[str, Any]
    status: PointStatus
    message: str = ""
    progress: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """See `Point.key`."""
        return key_of(self.entry)

    @property
    def run(self) -> str:
        """Short name of the run, <identity>/seed<k>."""
        return f"{self.entry['identity']}/seed{self.entry['seed']}"


def states(outputs: Path, name: str) -> list[PointState]:
    """Return the current state of all points of a sweep."""
    entries = manifest(outputs, name)
    unfinished = [entry["job"] for entry in entries if entry["job"] and not _done(entry)]
    jobs = slurm.query(unfinished)
    return [state(entry, jobs.get(entry["job"])) for entry in entries]


def state(entry: Mapping[str, Any], job: slurm.Job | None = None) -> PointState:
    """Return the state of a point from its files and from SLURM's state of its job."""
    directory = Path(entry["directory"])
    if _done(entry):
        return PointState(entry, "done")
    alive = job is not None and job.active
    if alive and job is not None and job.state == "PENDING":
        return PointState(entry, "queued", job.reason)
    owner = holder(lock_of(directory))
    if owner is not None and alive and job is not None and not job.owns(owner):
        return PointState(entry, "held", f"by process {owner['pid']} on {owner['host']}")
    if owner is not None or alive:
        return PointState(entry, "running", progress=_progress(directory))
    if (directory / "failed").exists():
        lines = tail(directory / "failed").strip().splitlines()
        return PointState(entry, "failed", lines[-1] if lines else "")
    if (directory / "pruned").exists():
        return PointState(entry, "pruned", tail(directory / "pruned").strip())
    log = Path(entry["log"]) if entry["log"] else None
    ended = "" if job is None else job.ending
    if ended or (log is not None and log.exists() and log.stat().st_size):
        said = last_line(log) if log is not None and log.exists() else ""
        message = ": ".join(filter(None, (ended, said)))
        return PointState(entry, "failed", message, _progress(directory))
    status: PointStatus = "interrupted" if directory.exists() else "missing"
    return PointState(entry, status, progress=_progress(directory))


def inspected(state: PointState) -> PointState:
    """Return the same state, or `damaged` if a finished point's result cannot be read."""
    from spurcor.runs.results import read_result

    if state.status != "done":
        return state
    try:
        read_result(Path(state.entry["directory"]))
    except (UserError, OSError) as error:
        return dataclasses.replace(state, status="damaged", message=str(error))
    return state


def last_line(path: Path) -> str:
    """Return the last message of spurcor in a log, or else a pointer to the log."""
    own = [line for line in tail(path).splitlines() if line.startswith("spurcor: ")]
    return own[-1].removeprefix("spurcor: ") if own else f"see {path}"


def _done(entry: Mapping[str, Any]) -> bool:
    return has_all(Path(entry["directory"]), entry["needs"])


def _progress(directory: Path) -> str:
    """Return the last epoch and the remaining time at the same pace; "" before the first row."""
    try:
        phases = read_json(directory / "phases.json", Plan)["phases"]
        row = json.loads(tail(directory / "metrics.jsonl").splitlines()[-1])
        names = [phase["name"] for phase in phases]
        before = sum(phase["epochs"] for phase in phases[: names.index(row["phase"])])
        total, done = sum(phase["epochs"] for phase in phases), before + row["epoch"]
        left = row["seconds"] / max(done, 1) * (total - done)
        epochs = phases[names.index(row["phase"])]["epochs"]
    except (OSError, ValueError, TypeError, KeyError, IndexError):  # no row yet
        return ""
    return f"{row['phase']} {row['epoch']}/{epochs}, {duration(left)} left"


def duration(seconds: float) -> str:
    """Format a duration, given in seconds, in s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
