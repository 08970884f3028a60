"""The tables of a report as records, shared by all output formats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from spurcor.presentation.statistics import Summary
from spurcor.presentation.tables import LAST, ORACLE, Cell, Interval, Record, Seeds, Table
from spurcor.reports.selection import Candidate, Pick, judge
from spurcor.reports.trials import Trial

FEWEST = 3  # seeds of an interval
Judged = Mapping[tuple[str, str], Sequence[Candidate]]  # by (data set, method)


@dataclass(frozen=True)
class Metric:
    """A table column: its title, the column of the rows it shows, and the factor between them."""

    name: str
    column: str
    factor: float = 100.0

    @property
    def lower_is_better(self) -> bool:
        """Whether it is an error: <analysis>/<rule>/<error_at or aurc>/<split>."""
        return any(part.startswith(("error", "aurc")) for part in self.column.split("/")[2:-1])

    def of(self, candidate: Candidate) -> Summary | None:
        """Return a summary over the seeds at the selected rows; None without a value."""
        return Summary.of([self.factor * value for value in candidate.values(self.column)])


def judge_all(trials: Sequence[Trial], criterion: str, planned: Mapping[str, int]) -> Judged:
    """Return the candidates of each data set and method under one criterion."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.dataset, trial.method), []).append(trial)
    datasets = list(dict.fromkeys(dataset for dataset, _ in groups))
    ordered = sorted(groups, key=lambda group: datasets.index(group[0]))
    return {group: judge(groups[group], criterion, planned) for group in ordered}


def chosen(judged: Judged) -> list[Candidate]:
    """Return the candidates that the criterion chose or could not choose among."""
    return [candidate for found in judged.values() for candidate in found if candidate.chosen]


def methods(judged: Judged, metrics: Sequence[Metric]) -> Table:
    """Return a row per method at the setting that the criterion chose, with its cost."""
    records = [
        {**_head(one), **_figures(one, metrics), **_budget(one.picks)} for one in chosen(judged)
    ]
    lower_is_better = [metric.name for metric in metrics if metric.lower_is_better]
    notes = [*_notes(chosen(judged)), *_at_edges(judged), *_unequal(judged)]
    return Table("methods", "Methods", records, notes, lower_is_better)


def criteria(by_criterion: Mapping[str, Judged], metrics: Sequence[Metric]) -> Table:
    """Return the epoch and setting that each criterion selects, with their test accuracy.

    A method with one setting and one result leaves nothing to select and has one row.
    """
    records: list[Record] = []
    undefined: dict[str, list[str]] = {}
    for group in next(iter(by_criterion.values())):
        judged = {criterion: found[group] for criterion, found in by_criterion.items()}
        one = judged[ORACLE][0]
        if one.rivals == 0 and all(len(pick.trial.rows) == 1 for pick in one.picks):
            records.append(_choice(one, "any", metrics))
            continue
        decided = [key for key, found in judged.items() if any(one.column for one in found)]
        if decided in ([], [ORACLE]):
            records += [_choice(one, "none", metrics) for one in judged[LAST]]
        elif others := [key for key in judged if key not in decided]:
            undefined.setdefault(", ".join(others), []).append(" ".join(group))
        for criterion in decided:
            name = f"{ORACLE} (reads test)" if criterion == ORACLE else criterion
            records += [_choice(one, name, metrics) for one in judged[criterion] if one.chosen]
    notes = [
        f"Every criterion judges the same runs. `{LAST}` takes the last epoch and chooses the"
        " setting by validation; `val/worst_class` needs no attributes; `oracle` chooses by test"
        " data and is a bound, not a result. A repair has one result, so a criterion chooses"
        " its setting only."
    ]
    if any(record["criterion"] == "none" for record in records):
        notes.append("Criterion none: no validation figure can choose, every setting has a line.")
    notes += [f"Not recorded: {key} of {', '.join(of)}." for key, of in undefined.items()]
    lower_is_better = [metric.name for metric in metrics if metric.lower_is_better]
    return Table("criteria", "Selection criteria", records, notes, lower_is_better)


def _choice(one: Candidate, criterion: str, metrics: Sequence[Metric]) -> Record:
    head = _head(one)
    epochs = [pick.row["epoch"] for pick in one.picks if pick.row["epoch"] is not None]
    return {
        "data set": head["data set"],
        "method": head["method"],
        "criterion": criterion,
        "chosen by": one.column if criterion not in ("any", "none") else None,
        "setting": head["setting"],
        "epoch": fmean(epochs) if epochs else None,
        "seeds": head["seeds"],
        **{metric.name: metric.of(one) for metric in metrics},
    }


def settings(judged: Judged, metrics: Sequence[Metric]) -> Table:
    """Return a row per setting at the epochs that the criterion selected, the best first."""
    records = []
    for found in judged.values():
        for one in sorted(found, key=Candidate.rank, reverse=True):
            sign = -1 if one.column and one.column.endswith("/loss") else 1
            scores = [sign * 100 * pick.score for pick in one.picks if pick.score is not None]
            score = {"selection score": Summary.of(scores)}
            mark = {"chosen": "yes" if one.chosen and not one.undecided else ""}
            records.append(
                {**_head(one), **mark, **score, **_figures(one, metrics), **_budget(one.picks)}
            )
    return Table("settings", "Settings", records)


def _head(one: Candidate) -> dict[str, Cell]:
    trial = one.trial
    setting = f"{trial.setting} (unselected)" if one.undecided else trial.setting
    seeds = Seeds(len(one.picks), one.expected)
    return {"data set": trial.dataset, "method": trial.method, "setting": setting, "seeds": seeds}


def _figures(one: Candidate, metrics: Sequence[Metric]) -> dict[str, Cell]:
    figures: dict[str, Cell] = {metric.name: metric.of(one) for metric in metrics}
    first = metrics[0].of(one)
    interval = f"95 % interval of {metrics[0].name}"
    return figures | {interval: interval_of(first)}


def interval_of(summary: Summary | None) -> Interval | None:
    """Return the interval of a mean, or None for two seeds, whose interval excludes nothing."""
    return None if summary is None or summary.count < FEWEST else Interval(summary)


def _budget(picks: Sequence[Pick]) -> dict[str, Cell]:
    runs = [pick.trial.run for pick in picks]
    return {
        "images seen": round(fmean(run.images for run in runs)),
        "seconds": fmean(run.seconds for run in runs),
    }


def _at_edges(judged: Judged) -> list[str]:
    """Return notes on chosen settings at an end of the values tried: better may lie beyond."""
    notes = []
    for (dataset, method), found in judged.items():
        for one in (one for one in found if one.chosen and one.column):
            said = list(filter(None, (_edge(key, one, found) for key in one.trial.config)))
            if said:
                notes.append(f"{dataset}, {method}: the best setting has {' and '.join(said)}.")
    return notes


def _edge(key: str, chosen: Candidate, found: Sequence[Candidate]) -> str:
    values = {one.trial.config.get(key) for one in found}
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    value = chosen.trial.config[key]
    if len(numbers) < FEWEST or value not in (min(numbers), max(numbers)):
        return ""
    end = "largest" if value == max(numbers) else "smallest"
    return f"the {end} of {len(numbers)} values of {key}, {value}"


def _unequal(judged: Judged) -> list[str]:
    """Return notes on methods that were chosen among different numbers of settings."""
    counts: dict[str, dict[str, int]] = {}
    for (dataset, method), found in judged.items():
        counts.setdefault(dataset, {})[method] = len(found)
    return [
        f"{dataset}: the methods were tuned over unequal numbers of settings ("
        + ", ".join(f"{method} {number}" for method, number in of.items())
        + "); more settings are more chances."
        for dataset, of in counts.items()
        if len(set(of.values())) > 1
    ]


def _notes(shown: Sequence[Candidate]) -> list[str]:
    """Return notes that readers need about the candidates shown."""
    notes = []
    if any(one.undecided for one in shown):
        notes.append(
            "(unselected): the validation figure that would choose among these settings is not"
            " defined, so each is listed and none is preferred."
        )
    if any(len(one.picks) == FEWEST - 1 for one in shown):
        notes.append("No interval from two seeds: it would span everything.")
    if any(len(one.picks) < one.expected for one in shown):
        notes.append("Seeds `3 of 5`: the other two are not finished.")
    if any(one.column == "val/average" and one.criterion == "val/worst" for one in shown):
        notes.append("Where validation data have no attributes, val/average was used instead.")
    if fitted := {one.trial.value("dfr.split") for one in shown if one.trial.repair}:
        notes.append(
            f"DFR is fitted on {' or '.join(sorted(map(str, fitted)))}; its images and seconds are"
            " those of its run."
        )
    return notes
