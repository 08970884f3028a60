"""Methods compared over the seeds that they share."""

from collections.abc import Sequence
from itertools import groupby

from spurcor.presentation.statistics import EXACT_UP_TO, RANDOM_PATTERNS, Summary, holm, sign_flip_p
from spurcor.presentation.tables import Cell, Interval, Table
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Metric


def comparison(shown: Sequence[Candidate], metric: Metric, baseline: str | None) -> Table:
    """Paired differences of every method to the baseline, or to the best other method.

    p-values are corrected by Holm's procedure over the comparisons within a data set.
    """
    records: list[dict[str, Cell]] = []
    smallest: set[int] = set()
    random = False
    best_other = []
    for dataset, group in groupby(shown, key=lambda one: one.trial.dataset):
        candidates = list(group)
        fixed = next((one for one in candidates if one.name == baseline), None)
        if fixed is None and len(candidates) > 1:
            best_other.append(dataset)
        compared: dict[str, dict[str, Cell]] = {}
        p_values: dict[str, float] = {}
        for one in candidates:
            other = fixed or _best([rival for rival in candidates if rival is not one], metric)
            if other is None or other is one:
                continue
            differences = paired(one, other, metric)
            summary = Summary.of(differences)
            compared[one.name] = {
                "data set": dataset,
                "method": one.name,
                "against": other.name,
                "shared seeds": len(differences),
                f"difference in {metric.name}": summary,
                "95 % interval": None if summary is None else Interval(summary),
            }
            if len(differences) > 1:
                p_values[one.name] = sign_flip_p(differences)
                smallest.add(len(differences))
                random |= len(differences) > EXACT_UP_TO
        corrected = holm(p_values)
        for name, record in compared.items():
            records.append(record | {"p": p_values.get(name), "p (Holm)": corrected.get(name)})
    notes = [
        f"Differences of test {metric.name} in percentage points, seed by seed; p by a two-sided"
        " sign-flip test, corrected over the comparisons in a data set."
    ]
    notes += [
        f"With {count} shared seeds no p can be below {2 / 2**count:.3g}."
        for count in sorted(smallest)
        if 2 / 2**count > 0.05
    ]
    if random:
        notes.append(
            f"Beyond {EXACT_UP_TO} shared seeds p rests on {RANDOM_PATTERNS:,} random patterns."
        )
    if best_other:
        notes.append(
            f"In {', '.join(best_other)} each is compared with the best other method, which test"
            " data chose: p is a guide there."
        )
    return Table("comparison", "Comparison over shared seeds", records, notes if records else ())


def paired(one: Candidate, other: Candidate, metric: Metric) -> list[float]:
    """Differences of a metric in percentage points, per seed that both have."""
    left, right = _by_seed(one, metric), _by_seed(other, metric)
    return [left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())]


def _by_seed(one: Candidate, metric: Metric) -> dict[int, float]:
    values = {pick.trial.run.seed: pick.value(metric.column) for pick in one.picks}
    return {seed: 100 * value for seed, value in values.items() if value is not None}


def _best(candidates: Sequence[Candidate], metric: Metric) -> Candidate | None:
    means = [(summary.mean, one) for one in candidates if (summary := metric.of(one)) is not None]
    best = min if metric.falling else max
    return best(means, key=lambda pair: pair[0])[1] if means else None
