"""Which epoch a run is judged by: a pure function of its rows that never reads test data."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spurcor.data.groups import Split

LOWER_IS_BETTER = ("loss",)


def score(row: Mapping[str, Any], criterion: str) -> float | None:
    """The row's value by a criterion such as val/worst, larger is better; None where undefined."""
    if not criterion.startswith(f"{Split.VAL}/"):
        raise ValueError(f"{criterion} may not select: only metrics of the validation split may")
    value = row.get(criterion)
    if value is None or math.isnan(value):
        return None
    return -float(value) if criterion.rpartition("/")[2] in LOWER_IS_BETTER else float(value)


@dataclass
class Best:
    """The best score of a phase, evaluation by evaluation."""

    score: float | None = None
    tie: float | None = None
    waited: int = 0  # evaluations since, that one included; all of them while none is defined

    def add(self, score: float | None, tie: float | None = None) -> bool:
        """Whether this is better than every earlier one: by `tie` where the scores are equal.

        Where no score has been defined, the last evaluation is taken.
        """
        best = self.score is None or (score is not None and self._beaten_by(score, tie))
        self.waited = 1 if best and score is not None else self.waited + 1
        if best:
            self.score, self.tie = score, tie
        return best

    def _beaten_by(self, score: float, tie: float | None) -> bool:
        assert self.score is not None
        if score != self.score or tie is None or self.tie is None:
            return score > self.score
        return tie > self.tie

    def exhausted(self, patience: int) -> bool:
        """Whether the last `patience` evaluations brought no improvement."""
        return self.waited > patience


def tie_breaker(row: Mapping[str, Any]) -> float | None:
    """What decides between equal scores: a worst group of 0 % in every epoch says nothing."""
    return score(row, f"{Split.VAL}/average")


def best_epoch(rows: Iterable[Mapping[str, Any]], criterion: str) -> int | None:
    """The epoch that a criterion chooses among the rows of a phase; None without an evaluation."""
    best, epoch = Best(), None
    for row in rows:
        if any(key.startswith(f"{Split.VAL}/") for key in row) and best.add(
            score(row, default_criterion(row, criterion)), tie_breaker(row)
        ):
            epoch = row["epoch"]
    return epoch


def default_criterion(row: Mapping[str, Any], criterion: str) -> str:
    """The criterion asked for, or val/average where val has no attributes to have groups by."""
    if criterion == "val/worst" and row.get(criterion) is None and "val/average" in row:
        return "val/average"
    return criterion
