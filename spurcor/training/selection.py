"""Selection of the epoch to report: a pure function of a run's rows that never reads test data."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spurcor.data.groups import Split

LOWER_IS_BETTER = ("loss",)


def score(row: Mapping[str, Any], criterion: str) -> float | None:
    """Return the row's value of a criterion such as val/worst, or None where undefined.

    Losses are negated, so higher is always better. Raises ValueError unless the criterion is a
    metric of VAL.
    """
    if not criterion.startswith(f"{Split.VAL}/"):
        raise ValueError(f"{criterion} may not select: only metrics of the validation split may")
    value = row.get(criterion)
    if value is None or math.isnan(value):
        return None
    return -float(value) if criterion.rpartition("/")[2] in LOWER_IS_BETTER else float(value)


@dataclass
class Best:
    """The best score within a phase, updated at every evaluation."""

    score: float | None = None
    tie: float | None = None
    waited: int = 0  # evaluations since the best, which counts too; all while no score is defined

    def add(self, score: float | None, tie: float | None = None) -> bool:
        """Add an evaluation; return whether it is the best so far, with `tie` as tie-breaker.

        While no score has been defined, the latest evaluation is the best.
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
        """Return whether the last `patience` evaluations brought no improvement."""
        return self.waited > patience


def tie_breaker(row: Mapping[str, Any]) -> float | None:
    """Return val/average, which breaks ties: worst-group accuracy may be 0 % in every epoch."""
    return score(row, f"{Split.VAL}/average")


def best_epoch(rows: Iterable[Mapping[str, Any]], criterion: str) -> int | None:
    """Return the epoch that a criterion selects among a phase's rows; None without evaluations."""
    best, epoch = Best(), None
    for row in rows:
        if any(key.startswith(f"{Split.VAL}/") for key in row) and best.add(
            score(row, default_criterion(row, criterion)), tie_breaker(row)
        ):
            epoch = row["epoch"]
    return epoch


def default_criterion(row: Mapping[str, Any], criterion: str) -> str:
    """Return the criterion, or val/average for val/worst if VAL has no attribute labels."""
    if criterion == "val/worst" and row.get(criterion) is None and "val/average" in row:
        return "val/average"
    return criterion
