"""Which epoch a run is judged by: a pure function of its rows that never reads test data."""

import math
from collections.abc import Mapping, Sequence
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


def is_best(rows: Sequence[Mapping[str, Any]], criterion: str) -> bool:
    """Whether the last row is better than every earlier one of its phase (a tie is not).

    Where the criterion is defined nowhere, the last row is taken.
    """
    last = score(rows[-1], criterion)
    earlier = [score(row, criterion) for row in rows[:-1] if row["phase"] == rows[-1]["phase"]]
    known = [value for value in earlier if value is not None]
    return not known or (last is not None and last > max(known))


def is_exhausted(rows: Sequence[Mapping[str, Any]], criterion: str, patience: int) -> bool:
    """Whether the last `patience` evaluations of the current phase brought no improvement."""
    phase = [row for row in rows if row["phase"] == rows[-1]["phase"] and criterion in row]
    if len(phase) <= patience:
        return False
    values = [score(row, criterion) for row in phase]
    best = max((v for v in values if v is not None), default=None)
    return best is None or values.index(best) < len(values) - patience


def default_criterion(row: Mapping[str, Any], criterion: str) -> str:
    """The criterion asked for, or val/average where val has no attributes to have groups by."""
    if criterion == "val/worst" and row.get(criterion) is None and "val/average" in row:
        return "val/average"
    return criterion
