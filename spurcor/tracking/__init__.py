"""Trackers mirror the files of a run; the files are authoritative, and training never waits."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from spurcor.config.nodes import Node, flat, plain
from spurcor.config.schema import MACHINE, TrainConfig
from spurcor.errors import UserError
from spurcor.system.files import read_json, read_lines
from spurcor.system.shapes import Repair, Result, Row

log = logging.getLogger(__name__)
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
UNTRACKED = ("phase", "time", "step")  # entries of a row that are not metrics


@dataclass(frozen=True)
class Record:
    """An entry of a tracker: a run, a DFR of a run, or a sweep."""

    directory: Path
    kind: Literal["run", "dfr", "sweep"]
    name: str
    sweep: str
    parent: Path | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_run(cls, directory: Path, config: TrainConfig) -> Record:
        """Return the record of a training run.

        Settings that affect its weights are parameters; machine options are tags.
        """
        params = _texts({**config.settings, "seed": config.seed})
        train = plain(config.train)
        tags = {
            **_texts(flat("train", {key: train[key] for key in MACHINE})),
            "spurcor.identity": config.identity,
            f"sweep.{config.sweep}": "true",
        }
        name = f"{config.choices['dataset']} {config.choices['method']} seed{config.seed}"
        sweep = config.paths.outputs / "sweeps" / config.sweep
        return cls(directory, "run", name, config.sweep, sweep, params, tags)

    @classmethod
    def of_dfr(cls, directory: Path, folder: Path, node: Node, config: TrainConfig) -> Record:
        """Return the record of a DFR, shown below its run.

        It repeats the parameters by which runs are compared: data set, backbone, method and seed.
        """
        run = cls.of_run(directory, config)
        shown = ("dataset", "backbone", "seed")
        params = {name: run.params[name] for name in shown}
        params |= {"method": f"{run.params['method']}+dfr"} | _texts(
            flat("dfr", plain(node.arguments))
        )
        tags = {key: run.tags[key] for key in ("spurcor.identity", f"sweep.{config.sweep}")}
        name = f"{run.name} dfr {folder.name}"
        return cls(folder, "dfr", name, config.sweep, directory, params, tags)

    @property
    def times(self) -> tuple[int | None, int | None]:
        """Start and end of a run in epoch ms, from its rows; (None, None) without rows."""
        rows = read_lines(self.directory / "metrics.jsonl", Row)
        if not rows:
            return None, None
        return int(rows[0]["time"] - 1000 * rows[0]["seconds"]), int(rows[-1]["time"])

    @property
    def label(self) -> str:
        """A readable name, unique in the outputs folder; a DFR's extends that of its run."""
        if self.kind == "sweep":
            return self.sweep
        run = self.parent if self.kind == "dfr" and self.parent else self.directory
        name = "-".join(run.parts[-4:])  # data set, method, identity, seed
        return f"{name}/{self.directory.name}" if self.kind == "dfr" else name

    @classmethod
    def of_sweep(cls, folder: Path) -> Record:
        """Return the record of a sweep, shown above its runs."""
        return cls(folder, "sweep", f"sweep {folder.name}", folder.name)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def metrics_of(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield name and value of the metrics in a row that are not None."""
    for key, value in row.items():
        if key not in UNTRACKED and value is not None:
            yield key, float(value)


def require(package: str) -> None:
    """Refuse a tracker whose package is not installed, before anything has started."""
    spec = importlib.util.find_spec(package)
    # A folder of that name in the working directory is found as well, but has no origin.
    if spec is None or spec.origin is None:
        raise UserError(
            f"tracker={package} needs the package {package}: pip install 'spurcor[{package}]'"
        )


class Tracker(Protocol):
    """A mirror of runs; calls return at once and may be repeated with the same content."""

    @property
    def title(self) -> str:
        """Display name of the tracker."""

    @property
    def address(self) -> str | None:
        """Address of the mirrored runs, or the command that opens them."""

    @property
    def alive(self) -> bool:
        """Whether everything sent so far was accepted."""

    def prepare(self) -> None:
        """Import the packages for the first call, which may take seconds; nothing is sent."""

    def start(self, record: Record) -> None:
        """Show a record as running, continuing its existing entry."""

    def log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows with `step` and `time` (epoch ms); their other numbers are metrics."""

    def result(self, record: Record, row: Mapping[str, Any]) -> None:
        """Log the final metrics, by which records are compared, as a row like those of `log`."""

    def artifact(self, record: Record, path: Path, folder: str = "") -> None:
        """Show a file in a folder of the record's files, replacing one of the same name.

        The file may be read as late as in `close`.
        """

    def finish(self, record: Record, status: Status) -> None:
        """Set the final status of a record."""

    def close(self) -> None:
        """Send everything that is still queued."""


class Trackers:
    """All trackers of a run; one that fails is dropped with a warning."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)
        self._dropped: list[Tracker] = []
        self._sent: dict[Path, int] = {}

    @property
    def alive(self) -> bool:
        """Whether no tracker has failed."""
        return not self._dropped and all(tracker.alive for tracker in self._trackers)

    @classmethod
    def build(cls, nodes: Mapping[str, Node], outputs: Path) -> Trackers:
        """Build the trackers named in a configuration, without starting them."""
        return cls(node.build(outputs=outputs) for node in nodes.values())

    @classmethod
    def open(cls, config: TrainConfig, stack: ExitStack) -> Trackers:
        """Build the trackers and register their `close` with the stack."""
        trackers = cls.build(config.tracker, config.paths.outputs)
        stack.callback(trackers.close)
        return trackers

    @property
    def addresses(self) -> dict[str, str]:
        """Address of each tracker, by title."""
        return {tracker.title: tracker.address for tracker in self._trackers if tracker.address}

    def prepare(self) -> None:
        """See `Tracker.prepare`; without it, the first call waits for the imports."""
        self._each("prepare")

    def start(self, record: Record) -> None:
        """See `Tracker.start`."""
        self._each("start", record)

    def rows(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log those of a run's rows that have not been sent yet."""
        sent = self._sent.get(record.directory, 0)
        if fresh := rows[sent:]:
            self._each("log", record, fresh)
            self._sent[record.directory] = len(rows)

    def report(self, record: Record) -> None:
        """Send metrics, configuration, result and plots of a finished record."""
        if record.kind == "dfr":
            self.start(record)
        self._each("result", record, _result_row(record))
        for name in ("config.yaml", "result.json"):
            if (path := record.directory / name).exists():
                self._each("artifact", record, path)
        for path in sorted(record.directory.glob("plots/*.png")):
            self._each("artifact", record, path, "plots")
        for path in sorted(record.directory.glob("analysis/*/plots/*.png")):
            self._each("artifact", record, path, f"plots/{path.parents[1].name}")
        self.finish(record, "FINISHED")

    def tag(self, record: Record) -> None:
        """Show a finished record with its tags, which may be new."""
        self.start(record)
        self.finish(record, "FINISHED")

    def attach(self, record: Record, paths: Iterable[Path], folder: str) -> None:
        """Add files in a folder to a finished record."""
        self.start(record)
        for path in paths:
            self._each("artifact", record, path, folder)
        self.finish(record, "FINISHED")

    def finish(self, record: Record, status: Status) -> None:
        """See `Tracker.finish`."""
        self._each("finish", record, status)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._each("close")

    def _each(self, call: str, *arguments: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, call)(*arguments)
            except Exception as error:  # a tracker must never stop a run
                log.warning("%s is switched off: %s", type(tracker).__name__, error)
                self._trackers.remove(tracker)
                self._dropped.append(tracker)


def _result_row(record: Record) -> dict[str, Any]:
    """Return the metrics of result.json as one row.

    For a run, the prefix `selected/` marks metrics of the selected epoch.
    """
    path = record.directory / "result.json"
    result = read_json(path, Result if record.kind == "run" else Repair)
    prefix = "selected/" if record.kind == "run" else ""
    reports = {"val": result["val"], "test": result["test"], **result["tests"]}
    rows = read_lines(record.directory / "metrics.jsonl", Row)
    if rows:
        row = {"step": rows[-1]["step"], "time": rows[-1]["time"]}
    else:
        row = {"step": 0, "time": int(path.stat().st_mtime * 1000)}
    for split, report in reports.items():
        numbers = {k: v for k, v in (report or {}).items() if not isinstance(v, Mapping)}
        row |= {f"{prefix}{split}/{key}": value for key, value in numbers.items()}
    for name, part in result.get("analysis", {}).items():
        numbers = part.get("metrics", {})
        row |= {f"{prefix}{name.rpartition('-')[0]}/{key}": v for key, v in numbers.items()}
    for split, found in result.get("groups", {}).items():
        numbers = {k: v for k, v in found.items() if not isinstance(v, Mapping)}
        row |= {f"groups/{split}/{key}": value for key, value in numbers.items()}
    return row
