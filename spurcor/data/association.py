"""How strongly a column of a table goes together with the class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
SHORTCUT = 0.3  # a medium effect (Cohen 1988): V above this, beyond chance, looks like a shortcut


@dataclass(frozen=True)
class Contingency:
    """Samples `counts` (K, V) of each class with each value of a column."""

    values: tuple[str, ...]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Association:
    """Cramér's V of a contingency table, with the ends of a 95 % interval."""

    v: float
    low: float
    high: float

    @property
    def suspicious(self) -> bool:
        """Whether even the lower end of the interval is above `SHORTCUT`."""
        return self.low > SHORTCUT


def cramers_v(counts: NDArray[np.int64]) -> float:
    """Return Cramér's V of counts (K, V): 0 if independent, 1 if one determines the other.

    Empty rows and columns do not count; NaN if fewer than two rows or columns are left.
    """
    from scipy.stats import contingency

    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if min(counts.shape) < 2:
        return float("nan")
    return float(contingency.association(counts, method="cramer"))


def association(counts: NDArray[np.int64], seed: int = 0) -> Association:
    """Return Cramér's V of counts (K, V) with its basic bootstrap interval.

    Samples are drawn again `DRAWS` times. V is biased upwards, the more the smaller the table's
    counts are, and redrawn once more so: the basic interval (2 V minus the quantiles, limited to 0
    and 1) takes that bias off.
    """
    v = cramers_v(counts)
    total = int(counts.sum())
    rng = np.random.default_rng(seed)
    tables = rng.multinomial(total, counts.ravel() / total, DRAWS).reshape(DRAWS, *counts.shape)
    again = np.array([cramers_v(table) for table in tables])
    lower, upper = np.nanquantile(again, [0.025, 0.975]) if not np.isnan(v) else (v, v)
    low, high = np.clip([2 * v - upper, 2 * v - lower], 0, 1)
    return Association(v, float(low), float(high))


def strongest(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return the class and value that go together most beyond chance.

    It is the cell with the largest adjusted residual, (n_ij - e_ij) divided by its standard
    deviation if class and value were independent.
    """
    total = counts.sum()
    row, column = counts.sum(1, keepdims=True) / total, counts.sum(0, keepdims=True) / total
    expected = total * row * column
    deviation = np.sqrt(expected * (1 - row) * (1 - column))
    residual = np.divide(
        counts - expected, deviation, out=np.zeros(counts.shape), where=deviation > 0
    )
    found = np.unravel_index(int(residual.argmax()), counts.shape)
    return int(found[0]), int(found[1])
