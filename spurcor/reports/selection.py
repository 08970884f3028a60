"""Select the epoch of a run and the setting of a method by a criterion.

All criteria judge the same rows. Only `_score` reads them to select, and only `oracle` may read
anything other than the validation split.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from spurcor.presentation.tables import LAST, ORACLE
from spurcor.reports.runs import Row, number
from spurcor.reports.trials import Trial

STANDARD = ("val/worst", "val/average", "val/worst_class", LAST, ORACLE)
ORACLE_COLUMN = "test/worst"


@dataclass(frozen=True)
class Pick:
    """The row of a trial that a criterion selects; its score is None if undefined."""

    trial: Trial
    row: Row
    score: float | None
    tie: float | None = None  # breaks ties between equal scores

    def value(self, column: str) -> float | None:
        """Return a column of the row, or else of the final measurements; None if undefined."""
        return number(self.row if column in self.row else self.trial.measured, column)


@dataclass(frozen=True)
class Candidate:
    """All seeds of one setting.

    `column` is the one that selected epochs and settings, or None if nothing could select.
    """

    criterion: str
    column: str | None
    picks: tuple[Pick, ...]
    expected: int
    chosen: bool = False
    rivals: int = 0

    @property
    def trial(self) -> Trial:
        """The trial of the first seed, for properties that all seeds share."""
        return self.picks[0].trial

    @property
    def score(self) -> float | None:
        """Mean score over the seeds with a score; None without any."""
        known = [pick.score for pick in self.picks if pick.score is not None]
        return fmean(known) if known else None

    def rank(self) -> tuple[float, float]:
        """Return the sort key: score, then tie-breaker; candidates without a score rank last."""
        ties = [pick.tie for pick in self.picks if pick.tie is not None]
        score = -math.inf if self.score is None else self.score
        return score, fmean(ties) if ties else -math.inf

    @property
    def name(self) -> str:
        """The method, with the setting if nothing could select among several."""
        trial = self.trial
        return f"{trial.method} [{trial.setting}]" if self.undecided else trial.method

    @property
    def undecided(self) -> bool:
        """Whether nothing could select among several settings, so that all are shown."""
        return self.column is None and self.rivals > 0

    def values(self, column: str) -> list[float]:
        """Return the defined values of a column at the selected rows."""
        found = (pick.value(column) for pick in self.picks)
        return [value for value in found if value is not None]


def judge(
    trials: Sequence[Trial], criterion: str, planned: Mapping[str, int] | None = None
) -> list[Candidate]:
    """Return the settings of one data set and method, with the best one marked as chosen.

    Each trial is judged by the first row with the best score, each setting by its mean score over
    seeds. Average accuracy breaks ties. Settings without any score are marked as chosen, too, since
    nothing rules them out.
    """
    column = _column(trials, criterion)
    settings: dict[str, list[Pick]] = {}
    for trial in trials:
        settings.setdefault(trial.identity, []).append(_pick(trial, column, criterion))
    seeds = [(planned or {}).get(picks[0].trial.run.identity, 0) for picks in settings.values()]
    expected = max([*seeds, *map(len, settings.values())], default=0)
    found = []
    for picks in settings.values():
        decides = any(pick.score is not None for pick in picks)
        by = column if decides else None
        found.append(Candidate(criterion, by, tuple(picks), expected, rivals=len(settings) - 1))
    best = max((one for one in found if one.column), key=Candidate.rank, default=None)
    return [replace(one, chosen=one is best or one.column is None) for one in found]


def _column(trials: Iterable[Trial], criterion: str) -> str:
    """Return the column that a criterion reads.

    For val/worst, it is val/average if no row has a worst-group accuracy.
    """
    if criterion == ORACLE:
        return ORACLE_COLUMN
    column = "val/worst" if criterion == LAST else criterion
    rows = (row for trial in trials for row in trial.rows)
    if column == "val/worst" and all(_score(row, column, criterion) is None for row in rows):
        return "val/average"
    return column


def _pick(trial: Trial, column: str, criterion: str) -> Pick:
    rows = trial.rows[-1:] if criterion == LAST else trial.rows
    average = f"{column.partition('/')[0]}/average"
    picks = [
        Pick(trial, row, _score(row, column, criterion), _score(row, average, criterion))
        for row in rows
    ]
    known = [pick for pick in picks if pick.score is not None]
    if not known:  # no epoch has a score: the last one, as in training
        return Pick(trial, rows[-1], None)
    return max(known, key=_order)


def _order(pick: Pick) -> tuple[float, float]:
    assert pick.score is not None
    return pick.score, -math.inf if pick.tie is None else pick.tie


def _score(row: Row, column: str, criterion: str) -> float | None:
    """Return the score of a row, larger is better; only here does a criterion read a row."""
    if criterion != ORACLE and not column.startswith("val/"):
        raise ValueError(f"{criterion} may not read {column}: it selects on validation data")
    value = number(row, column)
    return -value if value is not None and column.endswith("/loss") else value
