"""A sweep on disk: its points, frozen at submission, and how far each has come."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig

from spurcor import slurm
from spurcor.config import REPO, TrainConfig, check, check_saved, composed, plain
from spurcor.errors import Damaged, RunError, UserError, of_system
from spurcor.files import (
    append_lines,
    decoding,
    read_json,
    read_lines,
    replacing_folder,
    tail,
    write_text,
)
from spurcor.lock import holder, lock_of
from spurcor.passwords import masked
from spurcor.shapes import Entry, Plan

COPIED = ("spurcor", "conf", "sweeps")
GROUPS = ("dataset", "backbone", "method", "optimizer", "schedule", "features", "dfr", "site")
CHOSEN = ("dataset", "backbone", "method")  # every run has one of each
Status = Literal["done", "running", "queued", "held", "failed", "interrupted", "missing", "damaged"]
UNDER_WAY = ("queued", "running")


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
        """What tells it from the sweep's other points, which may repair the same run."""
        return (str(self.config.directory), *self.config.needs)

    @property
    def done(self) -> bool:
        """Whether all that it asks for is on disk."""
        return all((self.config.directory / path).exists() for path in self.config.needs)


@dataclass(frozen=True)
class PointState:
    """How far a point has come, by its files and by SLURM."""

    entry: Mapping[str, Any]
    status: Status
    message: str = ""
    progress: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """See `Point.key`."""
        return _key(self.entry)

    @property
    def run(self) -> str:
        """Short name of the run."""
        return f"{self.entry['identity']}/seed{self.entry['seed']}"


def read(cfg: DictConfig, choices: Mapping[str, Any]) -> TrainConfig:
    """Check a composed configuration; the names chosen for the groups become part of it."""
    tree = composed(cfg)
    if "choices" in tree:
        raise UserError("choices is no key; say dataset=..., method=... and so on")
    tree["choices"] = {group: str(choices[group]) for group in GROUPS if choices.get(group)}
    for group in ("dfr", "features", "analysis", "tracker"):
        tree[group] = tree.get(group) or {}
    config = check(tree, TrainConfig)
    return config if config.init is None else _with_origin(config, str(config.init))


def _with_origin(config: TrainConfig, init: str) -> TrainConfig:
    """The run that `method.init` names in any of the ways of run=..., by its directory.

    An identity without a seed is the run of the same seed.
    """
    from spurcor import runs
    from spurcor.results import read_result

    if "/" not in init and ":" not in init and not Path(init).exists():
        init = f"{init}/seed{config.seed}"
    directory = runs.find_done(init, config.paths.outputs, "method.init")
    run = read_result(directory)["run"]
    if directory.parts[-2:] != (run["identity"], f"seed{run['seed']}"):
        raise UserError(
            f"method.init={init} is no longer at its place, which is"
            f" {run['identity']}/seed{run['seed']}; move it back"
        )
    arguments = {**config.method.arguments, "init": str(directory)}
    return dataclasses.replace(
        config, method=dataclasses.replace(config.method, arguments=arguments)
    )


def cannot_write(outputs: Path, error: OSError) -> UserError | RunError:
    """The outputs folder is not there to be written to, or has no room now."""
    told = of_system(error)
    if isinstance(told, RunError):
        return told
    return UserError(f"paths.outputs={outputs} cannot be written ({told})")


# --- the manifest ---------------------------------------------------------------------------------


def sweep_folder(config: TrainConfig) -> Path:
    """Where a sweep keeps its manifest, points and code."""
    return config.paths.outputs / "sweeps" / config.sweep


def manifest(outputs: Path, name: str) -> list[dict[str, Any]]:
    """The points of a sweep, in the order they were first asked for; a later line updates one."""
    path = outputs / "sweeps" / name / "points.jsonl"
    if not path.exists():
        found = sorted(p.parent.name for p in (outputs / "sweeps").glob("*/points.jsonl"))
        raise UserError(
            f"sweep={name} does not exist in {outputs}; there is {', '.join(found) or 'none yet'}"
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
    entries = {_key(point.entry): point.entry for point in points}
    fresh = [
        entry
        for key, entry in entries.items()
        if key not in known or (entry["log"] and entry != known[key])
    ]
    append_lines(path, fresh)


def _entries(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The lines of a manifest, the last of each point."""
    lines = read_lines(path, Entry, "remove the line, and run the sweep again")
    return {_key(entry): entry for entry in lines}


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Points that repair one run in two ways share its directory, but not what they need."""
    return (entry["directory"], *entry["needs"])


# --- freezing -------------------------------------------------------------------------------------


def write_point(point: Point) -> Path:
    """The checked configuration of a point, as its process will read it.

    The name has a hash of the content: nothing that is issued later changes a queued point.
    """
    config = point.config
    folder = sweep_folder(config) / "points"
    folder.mkdir(parents=True, exist_ok=True)
    text = masked(yaml.safe_dump(plain(config), sort_keys=False))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = folder / f"{config.identity}-seed{config.seed}-{digest}.yaml"
    write_text(path, text)
    return path


def read_point(path: Path) -> TrainConfig:
    """The configuration of a frozen point."""
    return read_frozen(path, "start the sweep again: it writes its points anew")


def read_frozen(path: Path, fix: str | None = None) -> TrainConfig:
    """A configuration kept on disk. It is data: nothing in it is resolved or imported."""
    with decoding(path, fix):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise Damaged(path, "does not hold the configuration of a run", fix)
    try:
        config = check_saved(tree, TrainConfig)
    except UserError as error:
        said = "; ".join(str(error).splitlines())
        raise Damaged(path, f"does not fit this version of the code ({said})", fix) from error
    if missing := [group for group in CHOSEN if not config.choices.get(group)]:
        raise Damaged(path, f"is damaged (choices lacks {', '.join(missing)})", fix)
    return config


def copy_code(folder: Path) -> Path:
    """Freeze code and configuration: what was submitted is what runs."""
    from spurcor.results import commit

    files = sorted(
        path
        for name in COPIED
        for path in (REPO / name).rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml") and "__pycache__" not in path.parts
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(REPO)).encode() + path.read_bytes())
    target = folder / f"code-{digest.hexdigest()[:8]}"
    if not target.exists():
        with replacing_folder(target) as beside:
            for name in COPIED:
                ignored = shutil.ignore_patterns("__pycache__", "outputs")
                shutil.copytree(REPO / name, beside / name, symlinks=True, ignore=ignored)
            for path in (path for path in beside.rglob("*.yaml") if not path.is_symlink()):
                text = path.read_text(encoding="utf-8")
                if masked(text) != text:  # the points have such values from their own files
                    path.write_text(masked(text), encoding="utf-8")
            (beside / "commit").write_text(commit() + "\n")
    return target


# --- how far it has come --------------------------------------------------------------------------


def states(outputs: Path, name: str) -> list[PointState]:
    """Every point of a sweep, live."""
    entries = manifest(outputs, name)
    unfinished = [entry["job"] for entry in entries if entry["job"] and not _done(entry)]
    jobs = slurm.query(unfinished)
    return [state(entry, jobs.get(entry["job"])) for entry in entries]


def state(entry: Mapping[str, Any], job: slurm.Job | None = None) -> PointState:
    """A point, from its files and from what SLURM says of its job."""
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
    log = Path(entry["log"]) if entry["log"] else None
    ended = "" if job is None else job.ending
    if ended or (log is not None and log.exists() and log.stat().st_size):
        said = last_line(log) if log is not None and log.exists() else ""
        message = ": ".join(filter(None, (ended, said)))
        return PointState(entry, "failed", message, _progress(directory))
    status: Status = "interrupted" if directory.exists() else "missing"
    return PointState(entry, status, progress=_progress(directory))


def inspected(state: PointState) -> PointState:
    """The same, or that the result of a point that is done cannot be read."""
    from spurcor.results import read_result

    if state.status != "done":
        return state
    try:
        read_result(Path(state.entry["directory"]))
    except (UserError, OSError) as error:
        return dataclasses.replace(state, status="damaged", message=str(error))
    return state


def figures(state: PointState) -> tuple[float | None, float | None]:
    """Test accuracy of the worst group, before and after the repair asked for."""
    from spurcor.results import read_result

    try:
        result = read_result(Path(state.entry["directory"]))
    except (UserError, OSError):  # none yet, or damaged, as `inspected` says
        return None, None
    repairs = [need.split("/")[1] for need in state.entry["needs"] if need.startswith("dfr/")]
    repaired = [(result["dfr"].get(name, {}).get("test") or {}).get("worst") for name in repairs]
    worst = None if result["test"] is None else result["test"]["worst"]
    return worst, repaired[0] if repaired else None


def last_line(path: Path) -> str:
    """What a log ends with, in spurcor's own words if it has some, else the way to it."""
    own = [line for line in tail(path).splitlines() if line.startswith("spurcor: ")]
    return own[-1].removeprefix("spurcor: ") if own else f"see {path}"


def _done(entry: Mapping[str, Any]) -> bool:
    return all((Path(entry["directory"]) / path).exists() for path in entry["needs"])


def _progress(directory: Path) -> str:
    """Epochs done, and the time that the others will take at the same pace."""
    try:
        phases = read_json(directory / "phases.json", Plan)["phases"]
        row = json.loads(tail(directory / "metrics.jsonl").splitlines()[-1])
        names = [phase["name"] for phase in phases]
        before = sum(phase["epochs"] for phase in phases[: names.index(row["phase"])])
        total, done = sum(phase["epochs"] for phase in phases), before + row["epoch"]
        left = row["seconds"] / max(done, 1) * (total - done)
        epochs = phases[names.index(row["phase"])]["epochs"]
    except (OSError, ValueError, TypeError, KeyError, IndexError):  # the first row is yet to come
        return ""
    return f"{row['phase']} {row['epoch']}/{epochs}, {duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# --- the sweep's own record -----------------------------------------------------------------------


def open_sweep(points: Sequence[Point]) -> None:
    """Create the trackers' stores and the sweep's own record before any point starts.

    A run that another sweep has finished is shown in this one too.
    """
    from contextlib import ExitStack

    from spurcor.runs import read_config
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
