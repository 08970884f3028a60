"""Paired comparisons of methods over shared seeds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from spurcor.presentation.statistics import EXACT_UP_TO, RANDOM_PATTERNS, Summary, holm, sign_flip_p
from spurcor.presentation.tables import Record, Table
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Metric, interval_of


@dataclass(frozen=True)
class _Pair:
    """A method, its opponent, and their differences by seed."""

    one: Candidate
    other: Candidate
    differences: Sequence[float]

    @property
    def testable(self) -> bool:
        """Whether a p-value is defined, which takes two differences."""
        return len(self.differences) > 1


def comparison(shown: Sequence[Candidate], metric: Metric, baseline: str | None) -> Table:
    """Return paired differences of each method from the baseline, or else from the best other.

    p-values are corrected by Holm's procedure over the comparisons within a data set.
    """
    pairs: list[_Pair] = []
    records: list[Record] = []
    without_baseline = []
    for dataset, group in groupby(shown, key=lambda one: one.trial.dataset):
        candidates = list(group)
        fixed = next((one for one in candidates if one.name == baseline), None)
        if fixed is None and len(candidates) > 1:
            without_baseline.append(dataset)
        found = list(_pairs(candidates, fixed, metric))
        pairs += found
        records += _records(found, metric)
    notes = _notes(pairs, metric, without_baseline) if records else ()
    return Table("comparison", "Comparison over shared seeds", records, notes)


def _pairs(
    candidates: Sequence[Candidate], fixed: Candidate | None, metric: Metric
) -> Iterator[_Pair]:
    """Yield each candidate paired with the fixed one, or else with the best of the others."""
    for one in candidates:
        other = fixed or _best([rival for rival in candidates if rival is not one], metric)
        if other is not None and other is not one:
            yield _Pair(one, other, paired(one, other, metric))


def _records(pairs: Sequence[_Pair], metric: Metric) -> Iterator[Record]:
    """Yield one row per pair of a data set."""
    p_values = {pair.one.name: sign_flip_p(pair.differences) for pair in pairs if pair.testable}
    corrected = holm(p_values)
    for pair in pairs:
        name, summary = pair.one.name, Summary.of(pair.differences)
        yield {
            "data set": pair.one.trial.dataset,
            "method": name,
            "against": pair.other.name,
            "shared seeds": len(pair.differences),
            f"difference in {metric.name}": summary,
            "95 % interval": interval_of(summary),
            "p": p_values.get(name),
            "p (Holm)": corrected.get(name),
        }


def _notes(pairs: Sequence[_Pair], metric: Metric, without_baseline: Sequence[str]) -> list[str]:
    """Return notes on how differences are defined and on the limits of the p-values."""
    notes = [
        f"Differences of test {metric.name} in percentage points, seed by seed; p by a two-sided"
        " sign-flip test, corrected over the comparisons in a data set."
    ]
    counts = sorted({len(pair.differences) for pair in pairs if pair.testable})
    notes += [
        f"With {count} shared seeds no p can be below {2 / 2**count:.3g}."
        for count in counts
        if 2 / 2**count > 0.05
    ]
    if any(count > EXACT_UP_TO for count in counts):
        notes.append(
            f"Beyond {EXACT_UP_TO} shared seeds p rests on {RANDOM_PATTERNS:,} random patterns."
        )
    if without_baseline:
        notes.append(
            f"{', '.join(without_baseline)}: without a baseline, each method is compared with the"
            " best of the others, which was chosen by test data; take p as a guide only."
        )
    return notes


def paired(one: Candidate, other: Candidate, metric: Metric) -> list[float]:
    """Return differences of a metric in percentage points, one per shared seed."""
    left, right = _by_seed(one, metric), _by_seed(other, metric)
    return [left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())]


def _by_seed(one: Candidate, metric: Metric) -> dict[int, float]:
    values = {pick.trial.run.seed: pick.value(metric.column) for pick in one.picks}
    return {seed: 100 * value for seed, value in values.items() if value is not None}


def _best(candidates: Sequence[Candidate], metric: Metric) -> Candidate | None:
    means = [(summary.mean, one) for one in candidates if (summary := metric.of(one)) is not None]
    best = min if metric.lower_is_better else max
    return best(means, key=lambda pair: pair[0])[1] if means else None
