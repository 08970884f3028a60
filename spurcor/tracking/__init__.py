"""Trackers mirror the files of a run; the files are the record, and training never waits."""

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
UNTRACKED = ("phase", "time", "step")  # row entries that are no metrics


@dataclass(frozen=True)
class Record:
    """One thing that trackers show: a run, a DFR of a run, or a sweep."""

    directory: Path
    kind: Literal["run", "dfr", "sweep"]
    name: str
    sweep: str
    parent: Path | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_run(cls, directory: Path, config: TrainConfig) -> Record:
        """A training run: the settings that move its weights as params, the machine's as tags."""
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
        """A DFR of a run, shown below it; it repeats what runs are compared by."""
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
        """Begin and end of a run by its rows, in epoch ms; of what has none, the present."""
        rows = read_lines(self.directory / "metrics.jsonl", Row)
        if not rows:
            return None, None
        return int(rows[0]["time"] - 1000 * rows[0]["seconds"]), int(rows[-1]["time"])

    @property
    def label(self) -> str:
        """A readable name that no other record of the outputs folder has; a DFR's is below it."""
        if self.kind == "sweep":
            return self.sweep
        run = self.parent if self.kind == "dfr" and self.parent else self.directory
        name = "-".join(run.parts[-4:])  # data set, method, identity, seed
        return f"{name}/{self.directory.name}" if self.kind == "dfr" else name

    @classmethod
    def of_sweep(cls, folder: Path) -> Record:
        """A sweep, above its runs."""
        return cls(folder, "sweep", f"sweep {folder.name}", folder.name)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def metrics_of(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The metrics of a row that have a value."""
    for key, value in row.items():
        if key not in UNTRACKED and value is not None:
            yield key, float(value)


def require(package: str) -> None:
    """Refuse a tracker whose package is missing, before anything has started."""
    spec = importlib.util.find_spec(package)
    # A folder of that name in the working directory, such as a tracker's own, is found as well.
    if spec is None or spec.origin is None:
        raise UserError(
            f"tracker={package} needs the package {package}: pip install 'spurcor[{package}]'"
        )


class Tracker(Protocol):
    """A mirror. Calls return at once and may come twice with the same content."""

    @property
    def title(self) -> str:
        """What people call it."""

    @property
    def address(self) -> str | None:
        """An address, or the command that opens what is mirrored."""

    @property
    def alive(self) -> bool:
        """Whether everything sent so far was taken."""

    def prepare(self) -> None:
        """Import what the first call needs, which may take seconds; nothing is sent."""

    def start(self, record: Record) -> None:
        """Show a record as running, continuing what is shown of it already."""

    def log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show metrics: rows with `step` and `time` (epoch ms); other numbers are metrics."""

    def result(self, record: Record, row: Mapping[str, Any]) -> None:
        """Show what the record is compared by: a row like those of `log`."""

    def artifact(self, record: Record, path: Path, folder: str = "") -> None:
        """Show a file, in a folder of the record's files; it takes the place of its namesake.

        The file may be read as late as in `close`.
        """

    def finish(self, record: Record, status: Status) -> None:
        """Show how the record ended."""

    def close(self) -> None:
        """Send what is left."""


class Trackers:
    """All trackers of a run. One that fails is dropped with a warning."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)
        self._dropped: list[Tracker] = []
        self._sent: dict[Path, int] = {}

    @property
    def alive(self) -> bool:
        """Whether no mirror has failed."""
        return not self._dropped and all(tracker.alive for tracker in self._trackers)

    @classmethod
    def build(cls, nodes: Mapping[str, Node], outputs: Path) -> Trackers:
        """Build the trackers that a configuration names; nothing is started by it."""
        return cls(node.build(outputs=outputs) for node in nodes.values())

    @classmethod
    def open(cls, config: TrainConfig, stack: ExitStack) -> Trackers:
        """The same, closed with the stack."""
        trackers = cls.build(config.tracker, config.paths.outputs)
        stack.callback(trackers.close)
        return trackers

    @property
    def addresses(self) -> dict[str, str]:
        """By title, where each mirror is seen."""
        return {tracker.title: tracker.address for tracker in self._trackers if tracker.address}

    def prepare(self) -> None:
        """See `Tracker.prepare`; who does not call it waits later."""
        self._each("prepare")

    def start(self, record: Record) -> None:
        """See `Tracker.start`."""
        self._each("start", record)

    def rows(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send those of a run's rows that were not sent yet."""
        sent = self._sent.get(record.directory, 0)
        if fresh := rows[sent:]:
            self._each("log", record, fresh)
            self._sent[record.directory] = len(rows)

    def report(self, record: Record) -> None:
        """Send the result of a finished record and show it as finished."""
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

    def attach(self, record: Record, paths: Iterable[Path], folder: str) -> None:
        """Show files of a record that is finished, in a folder beside its others."""
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
            except Exception as error:  # whatever a tracker does, the run goes on
                log.warning("%s is switched off: %s", type(tracker).__name__, error)
                self._trackers.remove(tracker)
                self._dropped.append(tracker)


def _result_row(record: Record) -> dict[str, Any]:
    """Metrics of result.json as one row; `selected/` marks those of a run's selected epoch."""
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
    return row
