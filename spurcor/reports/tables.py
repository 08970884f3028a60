"""The tables of a report, as records that every output form shares."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from spurcor.reports.selection import LAST, ORACLE, Candidate, Pick, judge
from spurcor.reports.statistics import Summary
from spurcor.reports.trials import Trial, short_names, show_value, with_settings


@dataclass(frozen=True)
class Interval:
    """A summary of which the interval is shown."""

    of: Summary


@dataclass(frozen=True)
class Seeds:
    """How many seeds a row rests on, and how many it should."""

    count: int
    expected: int

    def __str__(self) -> str:
        missing = self.count < self.expected
        return f"{self.count} of {self.expected}" if missing else str(self.count)


Cell = str | int | float | Summary | Interval | Seeds | None
Record = Mapping[str, Cell]
Judged = Mapping[tuple[str, str], Sequence[Candidate]]  # by data set and method


@dataclass(frozen=True)
class Table:
    """Records in order, with the sentences that belong below them."""

    name: str
    title: str
    records: Sequence[Record]
    notes: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """Of all records, in order of appearance."""
        return list(dict.fromkeys(key for record in self.records for key in record))


@dataclass(frozen=True)
class Metric:
    """A column of the tables and the column of the rows that it shows, in per cent."""

    name: str
    column: str

    def of(self, candidate: Candidate) -> Summary | None:
        """Over the seeds, at the rows that the criterion picked."""
        return Summary.of([100 * value for value in candidate.values(self.column)])


def judge_all(trials: Sequence[Trial], criterion: str, planned: Mapping[str, int]) -> Judged:
    """The candidates of every data set and method by one criterion."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.dataset, trial.method), []).append(trial)
    datasets = list(dict.fromkeys(dataset for dataset, _ in groups))
    ordered = sorted(groups, key=lambda group: datasets.index(group[0]))
    return {group: judge(groups[group], criterion, planned) for group in ordered}


def chosen(judged: Judged) -> list[Candidate]:
    """The candidates that the criterion chose, or that nothing could."""
    return [candidate for found in judged.values() for candidate in found if candidate.chosen]


def methods(judged: Judged, metrics: Sequence[Metric]) -> Table:
    """A line per method, at the setting that the criterion chose, with what it cost."""
    records = [
        {**_head(one), **_figures(one, metrics), **_budget(one.picks)} for one in chosen(judged)
    ]
    return Table("methods", "Methods", records, _notes(chosen(judged)))


def criteria(by_criterion: Mapping[str, Judged], metrics: Sequence[Metric]) -> Table:
    """Every criterion's choice of epoch and setting, and the test accuracy it leads to."""
    records = []
    for group in next(iter(by_criterion.values()), {}):
        for criterion, judged in by_criterion.items():
            for one in judged[group]:
                if not one.chosen:
                    continue
                head = _head(one)
                epochs = [pick.row["epoch"] for pick in one.picks if pick.row["epoch"] is not None]
                records.append(
                    {
                        "data set": head["data set"],
                        "method": head["method"],
                        "criterion": f"{ORACLE} (reads test)" if criterion == ORACLE else criterion,
                        "chosen by": one.column or "nothing",
                        "setting": head["setting"],
                        "epoch": fmean(epochs) if epochs else None,
                        "seeds": head["seeds"],
                        **{metric.name: metric.of(one) for metric in metrics},
                    }
                )
    notes = [
        f"Every criterion judges the same runs. `{LAST}` takes the last epoch and chooses the"
        " setting by validation; `val/worst_class` needs no attributes; `oracle` chooses by test"
        " data and is no result, only a bound. A repair has one result, so a criterion chooses"
        " its setting only.",
    ]
    if any(record["chosen by"] == "nothing" for record in records):
        notes.append(
            "Chosen by nothing: the criterion is not defined there; runs are shown at the last"
            " epoch, every setting in a line of its own."
        )
    return Table("criteria", "Selection criteria", records, notes)


def settings(judged: Judged, metrics: Sequence[Metric]) -> Table:
    """A line per setting, at the epochs that the criterion picked."""
    records = []
    for found in judged.values():
        for one in found:
            sign = -1 if one.column and one.column.endswith("/loss") else 1
            scores = [sign * 100 * pick.score for pick in one.picks if pick.score is not None]
            score = {"selection score": Summary.of(scores)}
            mark = {"chosen": "yes" if one.chosen and not one.undecided else ""}
            records.append(
                {**_head(one), **mark, **score, **_figures(one, metrics), **_budget(one.picks)}
            )
    return Table("settings", "Settings", records)


# --- rows and columns of the reader's choice ------------------------------------------------------

Place = tuple[object, ...]
Cells = dict[Place, dict[Place, list[Candidate]]]


def cells(
    trials: Sequence[Trial], rows: Sequence[str], columns: Sequence[str], criterion: str
) -> tuple[list[str], Cells]:
    """Candidates by the values of the row keys and of the column keys.

    Nothing is selected over a key that is a row or a column. Data set, method and version of the
    splits join the rows where a cell would otherwise mix two of them.
    """
    trials = [trial for trial in trials if all(trial.value(key) is not None for key in columns)]
    trials = with_settings(trials, without=[*rows, *columns])
    rows = list(rows)
    for key in ("dataset", "method", "splits"):
        mixed: dict[tuple[Place, Place], set[object]] = {}
        for trial in trials:
            place = (_place(trial, rows), _place(trial, columns))
            mixed.setdefault(place, set()).add(trial.value(key))
        if key not in rows and any(len(values) > 1 for values in mixed.values()):
            rows.append(key)
    groups: dict[Place, dict[Place, list[Trial]]] = {}
    for trial in trials:
        row = groups.setdefault(_place(trial, rows), {})
        row.setdefault(_place(trial, columns), []).append(trial)
    return rows, {
        row: {
            column: [one for one in judge(group, criterion) if one.chosen]
            for column, group in found.items()
        }
        for row, found in groups.items()
    }


def pivot(
    trials: Sequence[Trial],
    rows: Sequence[str],
    columns: Sequence[str],
    metrics: Sequence[Metric],
    criterion: str,
) -> Table:
    """Mean and deviation over seeds, by configuration keys."""
    rows, found = cells(trials, rows, columns, criterion)
    names = short_names([*rows, *columns])
    names |= {key: title for key, title in (("dataset", "data set"),) if key in names}
    places = in_order(place for row in found.values() for place in row)
    records, undecided = [], 0
    for row in in_order(found):
        heads = dict(zip(rows, row, strict=True))
        record: dict[str, Cell] = {names[key]: _show(value) for key, value in heads.items()}
        for place in places:
            options = zip(columns, place, strict=True)
            title = " ".join(f"{names[key]}={show_value(value)}" for key, value in options)
            candidates = found[row].get(place, [])
            undecided += len(candidates) > 1
            one = candidates[0] if len(candidates) == 1 else None
            if not columns and one is not None:
                record["seeds"] = Seeds(len(one.picks), one.expected)
            for metric in metrics:
                shown = " ".join(filter(None, (title, metric.name if len(metrics) > 1 else "")))
                record[shown or metric.name] = metric.of(one) if one is not None else None
        records.append(record)
    what = ", ".join(metric.name for metric in metrics)
    notes = [f"Test {what} in %, epochs and whatever is no row or column chosen by `{criterion}`."]
    seeds = {len(one.picks) for row in found.values() for cell in row.values() for one in cell}
    if seeds:
        between = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(*seeds)
        notes.append(f"Seeds per cell: {between}.")
    if undecided:
        notes.append(
            f"{undecided} cells are empty because nothing can select among the settings in them:"
            " make the options that differ rows or columns, or keep one of them."
        )
    return Table("table", "Table", records, notes)


def in_order(places: Iterable[Place]) -> list[Place]:
    """Each place once: numbers by size, the rest in order of appearance."""
    found = list(dict.fromkeys(places))
    ranks = []
    for values in zip(*found, strict=True):
        known = list(dict.fromkeys(values))
        if all(isinstance(value, int | float) for value in known):
            known.sort()
        ranks.append({value: rank for rank, value in enumerate(known)})
    return sorted(found, key=lambda place: [rank[v] for rank, v in zip(ranks, place, strict=True)])


def _place(trial: Trial, keys: Sequence[str]) -> Place:
    return tuple(trial.value(key) for key in keys)


def _show(value: object) -> str | None:
    return None if value is None else show_value(value)


# --- parts of a record ----------------------------------------------------------------------------


def _head(one: Candidate) -> dict[str, Cell]:
    trial = one.trial
    setting = f"{trial.setting} (unselected)" if one.undecided else trial.setting
    seeds = Seeds(len(one.picks), one.expected)
    return {"data set": trial.dataset, "method": trial.method, "setting": setting, "seeds": seeds}


def _figures(one: Candidate, metrics: Sequence[Metric]) -> dict[str, Cell]:
    figures: dict[str, Cell] = {metric.name: metric.of(one) for metric in metrics}
    first = metrics[0].of(one)
    interval = f"95 % interval of {metrics[0].name}"
    return figures | {interval: None if first is None else Interval(first)}


def _budget(picks: Sequence[Pick]) -> dict[str, Cell]:
    runs = [pick.trial.run for pick in picks]
    return {
        "images seen": round(fmean(run.images for run in runs)),
        "seconds": fmean(run.seconds for run in runs),
    }


def _notes(shown: Sequence[Candidate]) -> list[str]:
    """What a reader must know of the candidates shown."""
    notes = []
    if any(one.undecided for one in shown):
        notes.append(
            "(unselected): the validation figure that would choose among these settings is not"
            " defined, so each is listed and none is preferred."
        )
    if any(len(one.picks) < one.expected for one in shown):
        notes.append("Seeds such as 3 of 5: the others are not done.")
    if any(one.column == "val/average" and one.criterion == "val/worst" for one in shown):
        notes.append("Where validation has no attributes, val/average chose.")
    if any(one.trial.repair for one in shown):
        notes.append("Images and seconds of a repair are those of its run.")
    return notes
