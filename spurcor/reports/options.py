"""Options of a report, checked against the runs."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spurcor.config.check import nearest
from spurcor.config.schema import METRICS
from spurcor.errors import UserError
from spurcor.reports.selection import STANDARD
from spurcor.reports.tables import Metric
from spurcor.reports.trials import Trial, with_settings

DEFAULT_ROWS = ("dataset", "method", "setting")
MOST_LISTED = 30
SHOWN_METRICS = tuple(name for name in METRICS if name not in ("loss", "worst_inferred"))


@dataclass(frozen=True)
class Curve:
    """A metric over the values of the configuration key `x`, one line per value of `lines`.

    If `quantities` of analyses are given, as <analysis>/<quantity>/<split>, each of them is a line
    and each value of `lines` is a panel.
    """

    x: str
    metric: str = "worst"
    lines: tuple[str, ...] = ("method",)
    quantities: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a report; see conf/report.yaml."""

    rows: tuple[str, ...] = DEFAULT_ROWS
    columns: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("worst", "average", "aligned", "conflicting")
    criterion: str = "val/worst"
    baseline: str | None = "erm"
    curve: Curve | None = None
    published: bool = False
    repairs: Literal["asked", "all"] = "asked"
    plots: bool = True
    keep: dict[str, Any] | None = None
    tuned: Literal["write", "replace"] | None = None

    def __post_init__(self) -> None:
        for key in ("rows", "metrics"):
            if not getattr(self, key):
                raise ValueError(f"{key}=[] is empty; give at least one")
        if twice := [key for key in self.rows if key in self.columns]:
            raise ValueError(f"columns={twice[0]} is already one of the rows; leave it out of one")


def keep(trials: Sequence[Trial], wanted: Mapping[str, Any] | None) -> list[Trial]:
    """Return the trials with one of the wanted values for each key.

    Raises UserError if a value, or the combination of all, matches no trial.
    """
    for key, value in (wanted or {}).items():
        _check("keep", key, _keys(trials))
        values = value if isinstance(value, list | tuple) else [value]
        found = list(dict.fromkeys(trial.value(key) for trial in trials))
        for one in values:
            if one not in found:
                raise UserError(f"keep.{key}={one} matches no run; choose from {_listed(found)}")
        trials = [trial for trial in trials if trial.value(key) in values]
    if not trials:
        raise UserError("keep matches no run: no run has all of these values at once")
    return with_settings(trials)


def check(options: Options, trials: Sequence[Trial]) -> list[Metric]:
    """Refuse options that match no run; return the metrics."""
    keys = _keys(trials)
    for name in ("rows", "columns"):
        for key in getattr(options, name):
            _check(name, key, keys)
    columns = {key: None for trial in trials for key in trial.rows[-1]}
    validation = [key for key in columns if key.startswith("val/")]
    _check("criterion", options.criterion, [*STANDARD, *validation])
    methods = list(dict.fromkeys(trial.method for trial in trials))
    if options.baseline not in (None, Options.baseline):
        _check("baseline", str(options.baseline), methods)
    if options.curve is not None:
        for key in (options.curve.x, *options.curve.lines):
            _check("curve", key, keys)
        metric("curve.metric", options.curve.metric, trials, columns)
        measured(options.curve.quantities, trials)
    return [metric("metrics", name, trials, columns) for name in options.metrics]


def metric(option: str, name: str, trials: Iterable[Trial], columns: Iterable[str] = ()) -> Metric:
    """Return a metric by name; UserError if no run has it.

    It is a metric of TEST, of a further test set (<name>/<metric>), or of an analysis at the end of
    a run (<analysis>/<quantity>/<split>).
    """
    tests = list(dict.fromkeys(test for trial in trials for test in trial.run.tests))
    own = [key.removeprefix("test/") for key in columns if key.startswith("test/group/")]
    known = [*SHOWN_METRICS, *own]
    measured = list(dict.fromkeys(key for trial in trials for key in trial.measured))
    _check(option, name, known + [f"{test}/{key}" for test in tests for key in known] + measured)
    return Metric(name, f"test/{name}" if name in known else name)


def measured(quantities: Iterable[str], trials: Iterable[Trial]) -> list[Metric]:
    """Return quantities of analyses by name, unscaled; UserError if no run has one.

    They are the columns of rows that do not start with a split.
    """
    keys = dict.fromkeys(key for trial in trials for row in trial.rows for key in row)
    splits = {"train", "val", "test", *(test for trial in trials for test in trial.run.tests)}
    known = [key for key in keys if "/" in key and key.partition("/")[0] not in splits]
    for name in quantities:
        _check("curve.quantities", name, known)
    return [Metric(name, name, 1.0) for name in quantities]


def _keys(trials: Sequence[Trial]) -> list[str]:
    options = dict.fromkeys(key for trial in trials for key in trial.config)
    return list(dict.fromkeys([*DEFAULT_ROWS, *options]))


def _check(option: str, value: str, known: Sequence[str]) -> None:
    if value in known:
        return
    if len(known) > MOST_LISTED:
        near = difflib.get_close_matches(value, known, 8, cutoff=0)
        rest = f"{len(known)} names are valid; the closest are {_listed(near)}"
    else:
        meant = nearest(value, known)
        rest = f"did you mean {meant}? Choose from " if meant else "choose from "
        rest += _listed(known)
    raise UserError(f"{option}={value} is not in this report; {rest}")


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values if value is not None)
