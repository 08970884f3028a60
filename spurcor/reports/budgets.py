"""Best of n: what a method would have reached with fewer of the settings that were tried."""

import math
from collections.abc import Mapping, Sequence

from spurcor.presentation.drawing import MOST, Drawing, Panel, Series
from spurcor.presentation.tables import Cell, Table, counted
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Judged, Metric

Values = Mapping[str, Sequence[float]]  # of a metric on TEST by method, the best on VAL first


def expected_best(values: Sequence[float], draws: int) -> float:
    """Return the expected value of the best of `draws` settings, drawn without replacement.

    `values` are in order of the validation score, the best first. The setting in place i is the
    best of n drawn from N in C(N - 1 - i, n - 1) of C(N, n) cases, an unbiased form of Dodge et al.
    (EMNLP 2019), which draws with replacement.
    """
    ways = [math.comb(len(values) - 1 - place, draws - 1) for place in range(len(values))]
    total = math.comb(len(values), draws)
    return sum(value * number / total for value, number in zip(values, ways, strict=True))


def budgets(judged: Judged, metric: Metric) -> Table:
    """Return what each method is expected to reach with as many settings as all of them have."""
    records: list[Mapping[str, Cell]] = []
    for dataset, methods in _by_dataset(judged, metric).items():
        equal = min(map(len, methods.values()))
        for method, values in methods.items() if len(methods) > 1 else ():
            records.append(
                {
                    "data set": dataset,
                    "method": method,
                    "settings": len(values),
                    "compared at": equal,
                    f"{metric.name} of one": expected_best(values, 1),
                    f"{metric.name} at equal budget": expected_best(values, equal),
                    f"{metric.name} of all": expected_best(values, len(values)),
                }
            )
    unequal = any(record["settings"] != record["compared at"] for record in records)
    note = (
        "What the setting with the best validation score is expected to have on TEST, among as many"
        " of a method's settings, drawn at random, as the method with the fewest has."
    )
    return Table("budgets", "Equal budgets", records if unequal else [], [note])


def best_of_n(judged: Judged, metric: Metric) -> Drawing:
    """Return the expected metric over the number of settings, one panel per data set."""
    panels = []
    names: dict[str, int] = {}
    for dataset, methods in _by_dataset(judged, metric).items():
        series = []
        for method, values in methods.items():
            style = names.setdefault(method, len(names))
            if len(values) > 1 and style < MOST:
                draws = range(1, len(values) + 1)
                y = [expected_best(values, number) for number in draws]
                series.append(Series(method, style, list(draws), y))
        if series:
            panels.append(Panel(dataset, series))
    notes = [
        "Expected value on TEST of the setting with the best validation score, among n of those"
        " that were tried, drawn at random; methods are to be compared at the same n."
    ]
    if len(names) > MOST:
        notes.append(f"The figure shows the first {MOST} of {counted(len(names), 'method')}.")
    title, shown = "Best of n settings", f"test {metric.name} (%)"
    return Drawing("best_of_n", title, "settings tried (n)", shown, panels[:MOST], notes)


def _by_dataset(judged: Judged, metric: Metric) -> dict[str, Values]:
    found: dict[str, dict[str, Sequence[float]]] = {}
    for (dataset, method), candidates in judged.items():
        ranked = sorted(candidates, key=Candidate.rank, reverse=True)
        means = [metric.of(one) for one in ranked if one.score is not None]
        values = [summary.mean for summary in means if summary is not None]
        if values:
            found.setdefault(dataset, {})[method] = values
    return dict(found)
