"""Means with confidence intervals and paired tests, exact where possible for small samples."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

LEVEL = 0.95
EXACT_UP_TO = 16  # pairs: 65,536 sign patterns
RANDOM_PATTERNS = 2**EXACT_UP_TO


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (ddof 1) and 95 % t interval of the mean; None for one value."""

    mean: float
    std: float | None
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary | None":
        """Return the summary of the values, or None if there are none."""
        if not values:
            return None
        mean, count = fmean(values), len(values)
        if count == 1:
            return cls(mean, None, None, None, 1)
        from scipy.special import stdtrit

        # Not scipy.stats.t.ppf: scipy.stats takes over a second to import.
        std = stdev(values)
        half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * std / count**0.5
        return cls(mean, std, mean - half, mean + half, count)

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ± {self.std:.1f}"

    @property
    def interval(self) -> str:
        """The confidence interval as text."""
        return "-" if self.low is None else f"[{self.low:.1f}, {self.high:.1f}]"


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired permutation test of the mean.

    It is the share of sign patterns whose mean is at least as far from 0 as the observed mean:
    among all patterns for up to EXACT_UP_TO differences, else among RANDOM_PATTERNS that include
    the observed one and are otherwise drawn with a fixed seed.
    """
    import numpy as np

    values = np.asarray(differences, dtype=float)
    # Sums that differ only by rounding count as ties.
    least = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    return float((np.abs(_signs(len(values)) @ values) >= least).mean())


@functools.lru_cache(maxsize=1)  # most methods of a sweep have the same number of seeds
def _signs(count: int) -> Any:
    """Return patterns of `count` signs, one per row: all of them, or random ones."""
    import numpy as np

    if count <= EXACT_UP_TO:
        return 1.0 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    drawn = np.random.default_rng(0).integers(0, 2, (RANDOM_PATTERNS, count), dtype=np.int8)
    signs = 1.0 - 2 * drawn
    signs[0] = 1
    return signs


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for multiple comparisons by Holm's step-down procedure."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = largest
    return corrected
