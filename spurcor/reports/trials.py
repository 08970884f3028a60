"""What a report compares: runs and repairs of runs, with their labels and settings."""

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spurcor.reports.runs import Row, Run, read_run

if TYPE_CHECKING:
    from spurcor.sweeps.states import PointState


@dataclass(frozen=True)
class Trial:
    """A run, judged by its epochs, or a repair, judged by its result.

    Trials with the same `identity` differ only in the seed. `dataset` is numbered if the splits of
    a data set differ among the runs; `setting` names the options in which trials of the same data
    set and method differ.
    """

    run: Run
    dataset: str
    method: str
    identity: str
    config: Mapping[str, Any]
    rows: Sequence[Row]
    repair: str | None = None
    setting: str = ""

    @property
    def measured(self) -> Row:
        """What analyses measured at the end of the run, as <analysis>/<quantity>/<split>.

        Two analyses of the same name are named by their folders. Repairs have none.
        """
        parts = {} if self.repair else self.run.measured
        names = [folder.rpartition("-")[0] for folder in parts]
        return {
            f"{name if names.count(name) == 1 else folder}/{key}": value
            for name, (folder, part) in zip(names, parts.items(), strict=True)
            for key, value in part.items()
        }

    def value(self, key: str) -> Any:
        """The value of a configuration key or of a label of the trial; None if it has none."""
        own = {"method": self.method, "setting": self.setting, "splits": self.dataset}
        return own[key] if key in own else self.config.get(key)


@dataclass(frozen=True)
class Missing:
    """A point of a sweep that has not finished."""

    sweep: str
    overrides: str
    status: str
    message: str


@dataclass(frozen=True)
class Collection:
    """All trials, unfinished points, and the runs that were skipped, with reasons."""

    trials: tuple[Trial, ...]
    missing: tuple[Missing, ...]
    skipped: Mapping[str, str]
    planned: Mapping[str, int]  # number of seeds requested, by identity of the run
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        """Each run once, however many repairs it has."""
        return list({trial.run.directory: trial.run for trial in self.trials}.values())


@dataclass
class _Asked:
    """What the points of the sweeps ask for, and which of them are done."""

    seeds: dict[str, set[int]] = field(default_factory=dict)  # by identity of the run
    folders: dict[Path, set[str]] = field(
        default_factory=dict
    )  # of repairs and analyses, by run directory
    done: set[Path] = field(default_factory=set)  # run directories for which some point is done
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
        else:
            text = " ".join(entry["overrides"])
            self.missing.append(Missing(sweep, text, point.status, point.message))


def collect(outputs: Path, sweeps: Sequence[str], *, all_repairs: bool = False) -> Collection:
    """Read the runs of the sweeps; a run that is in several sweeps counts once.

    Only those repairs and analyses are kept that some point asked for; with `all_repairs`, all
    repairs are.
    """
    from spurcor.sweeps.states import states

    asked = _Asked()
    for sweep in sweeps:
        for point in states(outputs, sweep):
            asked.add(sweep, point)
    found, skipped = _read(asked)
    labels, notes = _labels(found)
    runs = [_only(run, asked.folders[run.directory], all_repairs) for run in found]
    notes += [note for run in runs for note in _repair_notes(run)]
    if others := sum(len(run.repairs) for run in found) - sum(len(run.repairs) for run in runs):
        notes.append(
            f"{others} repairs of these runs were made outside the sweep and are left out;"
            " `repairs=all` shows them."
        )
    trials = with_settings([trial for run in runs for trial in _trials(run, labels)])
    planned = {identity: len(seeds) for identity, seeds in asked.seeds.items()}
    return Collection(tuple(trials), tuple(asked.missing), skipped, planned, tuple(notes))


def _read(asked: _Asked) -> tuple[list[Run], dict[str, str]]:
    """Finished runs, and by directory why others cannot be read."""
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
    """The run with only the repairs and analyses in these folders."""
    repairs = {k: v for k, v in run.repairs.items() if all_repairs or k in folders}
    measured = {k: v for k, v in run.measured.items() if k in folders}
    return replace(run, repairs=repairs, measured=measured)


def _repair_notes(run: Run) -> list[str]:
    """Notes that the repairs of a run have left."""
    place = f"{run.identity}/seed{run.seed}"
    return [f"DFR `{k}` of {place}: {note}." for k, note in run.notes.items() if k in run.repairs]


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Rows are millions of objects without cycles; looking for cycles takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _trials(run: Run, labels: Mapping[Path, str]) -> Iterable[Trial]:
    label, method = labels[run.directory], run.config["method"]
    yield Trial(run, label, method, run.identity, run.config, run.rows)
    for name, (options, row) in run.repairs.items():
        config = {**run.config, **options}
        identity = f"{run.identity}/{name}"
        yield Trial(run, label, f"{method} + DFR", identity, config, [row], name)


def _labels(runs: Sequence[Run]) -> tuple[dict[Path, str], list[str]]:
    """The label of each run's data set, numbered if several versions of its splits occur."""
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
            text = _described(group[0].config, {key: key for key in common})
            names = f"other {', '.join(other)}" if other else "the first found"
            descriptions.append(f"{label}: {text or names}")
        if len(found) > 1:
            notes.append(
                f"{dataset} occurs with {len(found)} versions of its splits, which share no row"
                f" and no pair. {'; '.join(descriptions)}."
            )
    return labels, notes


# --- settings -------------------------------------------------------------------------------------


def with_settings(trials: Sequence[Trial], without: Iterable[str] = ()) -> list[Trial]:
    """Name each trial's setting by the options that differ within its data set and method.

    Options in `without` are left out, as the table shows them elsewhere. Identities that no option
    distinguishes are named by their hash.
    """
    groups: dict[tuple[str, str], dict[str, Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.dataset, trial.method), {})[trial.identity] = trial
    keys_of = {
        group: [
            key for key in _distinguishing([t.config for t in found.values()]) if key not in without
        ]
        for group, found in groups.items()
    }
    names = short_names({key for keys in keys_of.values() for key in keys})
    texts: dict[tuple[str, str], dict[str, str]] = {}
    for group, found in groups.items():
        chosen = {key: names[key] for key in keys_of[group]}
        own = {identity: _described(trial.config, chosen) for identity, trial in found.items()}
        taken = list(own.values())
        texts[group] = {
            identity: text if without or taken.count(text) == 1 else f"{text} [{identity}]".strip()
            for identity, text in own.items()
        }
    return [replace(t, setting=texts[t.dataset, t.method][t.identity]) for t in trials]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each key if it is unambiguous, else the whole key."""
    keys = sorted(set(keys))
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which configurations differ, in their order.

    An option that only some have counts if its values differ, or if all chose the same class: that
    only SGD has a momentum already follows from optimizer=sgd.
    """
    values: dict[str, set[Any]] = {}
    counts: dict[str, int] = {}
    for config in configs:
        for key, value in config.items():
            values.setdefault(key, set()).add(value)
            counts[key] = counts.get(key, 0) + 1
    return [
        key
        for key, found in values.items()
        if len(found) > 1
        or (counts[key] < len(configs) and len(values.get(key.partition(".")[0], ())) <= 1)
    ]


def _distinguishing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that differ, without options of a repair that earlier ones of it determine."""
    kept: list[str] = []
    for key in differing(configs):
        before = [name for name in kept if name.startswith("dfr.")]
        if key.startswith("dfr.") and before:
            known = {tuple(config.get(name) for name in before) for config in configs}
            pairs = {tuple(config.get(name) for name in [*before, key]) for config in configs}
            if len(pairs) == len(known):
                continue
        kept.append(key)
    return kept


def _described(config: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return " ".join(f"{name}={show_value(config[k])}" for k, name in names.items() if k in config)


def show_value(value: Any) -> str:
    """A configuration value as it is typed on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(map(show_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
