"""Load the runs of sweeps as trials, and record unfinished and unreadable ones."""

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spurcor.reports.runs import Run, read_run
from spurcor.reports.trials import Trial, described, differing, with_settings

if TYPE_CHECKING:
    from spurcor.sweeps.states import PointState


@dataclass(frozen=True)
class Missing:
    """A point of a sweep that has not finished."""

    sweep: str
    overrides: str
    status: str
    message: str


@dataclass(frozen=True)
class Collection:
    """All trials, unfinished points, and skipped runs with the reason, by directory."""

    trials: tuple[Trial, ...]
    missing: tuple[Missing, ...]
    skipped: Mapping[str, str]
    planned: Mapping[str, int]  # number of requested seeds, by identity of the run
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs, each once, however many repairs it has."""
        return list({trial.run.directory: trial.run for trial in self.trials}.values())


@dataclass
class _Asked:
    """What the points of the sweeps request, and which runs have a finished point."""

    seeds: dict[str, set[int]] = field(default_factory=dict)  # by identity of the run
    folders: dict[Path, set[str]] = field(
        default_factory=dict
    )  # names of folders of repairs and analyses, by run directory
    done: set[Path] = field(default_factory=set)  # run directories with a finished point
    missing: list[Missing] = field(default_factory=list)

    def add(self, sweep: str, point: "PointState") -> None:
        """Add a point of a sweep."""
        entry = point.entry
        directory = Path(entry["directory"])
        self.seeds.setdefault(entry["identity"], set()).add(entry["seed"])
        folders = {Path(need).parent.name for need in entry["needs"]}
        self.folders.setdefault(directory, set()).update(folders)
        if point.status == "done":
            self.done.add(directory)
        elif point.status != "pruned":
            text = " ".join(entry["overrides"])
            self.missing.append(Missing(sweep, text, point.status, point.message))


def collect(outputs: Path, sweeps: Sequence[str], *, all_repairs: bool = False) -> Collection:
    """Load the runs of the sweeps; a run in several sweeps counts once.

    Only repairs and analyses that a point requested are kept; with `all_repairs`, all repairs are.
    Unreadable runs are skipped. Raises UserError for a sweep that does not exist.
    """
    from spurcor.sweeps.states import states

    asked = _Asked()
    for sweep in sweeps:
        for point in states(outputs, sweep):
            asked.add(sweep, point)
    found, skipped = _read(asked)
    labels, notes = _labels(found)
    runs = [_only(run, asked.folders[run.directory], all_repairs) for run in found]
    several = _with_several_groups(runs)
    notes += [note for run in runs for note in _repair_notes(run)]
    if others := sum(len(run.repairs) for run in found) - sum(len(run.repairs) for run in runs):
        notes.append(
            f"{others} repairs of these runs were made outside the sweep and are left out;"
            " `repairs=all` shows them."
        )
    trials = with_settings([trial for run in runs for trial in _trials(run, labels, several)])
    planned = {identity: len(seeds) for identity, seeds in asked.seeds.items()}
    return Collection(tuple(trials), tuple(asked.missing), skipped, planned, tuple(notes))


def _read(asked: _Asked) -> tuple[list[Run], dict[str, str]]:
    """Return finished runs, and the reasons why others cannot be read, by directory."""
    runs, skipped = [], {}
    with _without_collector():
        for directory in asked.folders:
            if directory in asked.done or (directory / "result.json").exists():
                try:
                    runs.append(read_run(directory))
                except (ValueError, OSError) as error:
                    skipped[str(directory)] = str(error)
    return runs, skipped


def _only(run: Run, folders: Set[str], all_repairs: bool) -> Run:
    """Return the run with only the repairs and analyses in these folders."""
    repairs = {k: v for k, v in run.repairs.items() if all_repairs or k in folders}
    measured = {k: v for k, v in run.measured.items() if k in folders}
    return replace(run, repairs=repairs, measured=measured)


def _repair_notes(run: Run) -> list[str]:
    """Return the notes that the repairs of a run recorded."""
    place = f"{run.identity}/seed{run.seed}"
    return [f"DFR `{k}` of {place}: {note}." for k, note in run.notes.items() if k in run.repairs]


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Disable garbage collection, which takes a third of the time of loading.

    Rows are millions of objects without reference cycles.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _with_several_groups(runs: Sequence[Run]) -> Set[str]:
    """Return the methods that trained by several kinds of groups, which compete with each other."""
    kinds: dict[str, set[object]] = {}
    for run in runs:
        kinds.setdefault(run.config["method"], set()).add(run.config.get("groups"))
    return {method for method, found in kinds.items() if len(found) > 1}


def _trials(run: Run, labels: Mapping[Path, str], several: Set[str]) -> Iterable[Trial]:
    label, method = labels[run.directory], run.config["method"]
    if method in several and (groups := run.config.get("groups")) is not None:
        method = f"{method} ({groups})"
    yield Trial(run, label, method, run.identity, run.config, run.rows)
    for name, (options, row) in run.repairs.items():
        config = {**run.config, **options}
        identity = f"{run.identity}/{name}"
        yield Trial(
            run, label, f"{method} + {run.titles.get(name, 'DFR')}", identity, config, [row], name
        )


def _labels(runs: Sequence[Run]) -> tuple[dict[Path, str], list[str]]:
    """Return the label of each run's data set, and notes on data sets with several versions.

    Labels are numbered if the splits of a data set differ among the runs.
    """
    versions: dict[str, dict[frozenset[tuple[str, str]], list[Run]]] = {}
    for run in runs:
        marks = frozenset(run.splits.items())
        versions.setdefault(run.config["dataset"], {}).setdefault(marks, []).append(run)
    labels: dict[Path, str] = {}
    notes = []
    for dataset, found in versions.items():
        descriptions = []
        keys = differing([run.config for group in found.values() for run in group])
        keys = [key for key in keys if key.startswith("dataset.")]
        for number, (marks, group) in enumerate(found.items(), 1):
            label = dataset if len(found) == 1 else f"{dataset} (splits {number})"
            labels |= {run.directory: label for run in group}
            other = sorted({name for name, _ in marks ^ next(iter(found))})
            common = [key for key in keys if len({run.config.get(key) for run in group}) == 1]
            text = described(group[0].config, {key: key for key in common})
            names = f"other {', '.join(other)}" if other else "the first found"
            descriptions.append(f"{label}: {text or names}")
        if len(found) > 1:
            notes.append(
                f"{dataset} occurs with {len(found)} versions of its splits, which share no row"
                f" and no pair. {'; '.join(descriptions)}."
            )
    return labels, notes
