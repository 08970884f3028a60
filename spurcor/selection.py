"""Which epoch a run is judged by: a pure function of its rows that never reads test data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spurcor.data import Split

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
    waited: int = 0  # evaluations since, that one included; all of them while none is defined

    def add(self, score: float | None) -> bool:
        """Whether this is better than every earlier one (a tie is not).

        Where none has been defined, the last one is taken.
        """
        best = self.score is None or (score is not None and score > self.score)
        self.waited = 1 if best and score is not None else self.waited + 1
        self.score = score if best else self.score
        return best

    def exhausted(self, patience: int) -> bool:
        """Whether the last `patience` evaluations brought no improvement."""
        return self.waited > patience


def default_criterion(row: Mapping[str, Any], criterion: str) -> str:
    """The criterion asked for, or val/average where val has no attributes to have groups by."""
    if criterion == "val/worst" and row.get(criterion) is None and "val/average" in row:
        return "val/average"
    return criterion
