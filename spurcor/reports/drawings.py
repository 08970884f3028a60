"""The data of a report's figures; another process draws them."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from spurcor.presentation.drawing import MOST, Drawing, Panel, Series
from spurcor.reports.pivot import Cells, Place, in_order
from spurcor.reports.runs import number
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Metric
from spurcor.reports.trials import show_value

SUMMARIES = ("worst", "average", "aligned", "conflicting")
BARS = "Bars: standard deviation over seeds."


def worst_against_average(shown: Sequence[Candidate]) -> Drawing:
    """Return a plot of worst-group against average test accuracy, a panel per data set.

    Each method is a point with standard deviations over seeds.
    """
    worst, average = Metric("worst", "test/worst"), Metric("average", "test/average")
    points = [
        (one, x, y)
        for one in shown
        if (x := average.of(one)) is not None and (y := worst.of(one)) is not None
    ]
    names, note = _first_few([one.name for one, _, _ in points], "methods")
    datasets, note2 = _first_few([one.trial.dataset for one, _, _ in points], "data sets")
    panels = [
        Panel(
            dataset,
            [
                Series(
                    one.name, names.index(one.name), [x.mean], [y.mean], [x.std or 0], [y.std or 0],
                    line=False,
                )
                for one, x, y in points
                if one.trial.dataset == dataset and one.name in names
            ],
        )
        for dataset in datasets
    ]  # fmt: skip
    return Drawing(
        "worst_vs_average", "Worst group against average", "average test accuracy (%)",
        "test accuracy, worst group (%)", panels, [BARS, *note, *note2], per_row=3, same_y=False,
    )  # fmt: skip


def learning_curves(shown: Sequence[Candidate], name: str, dataset: str) -> Drawing:
    """Return test accuracy by epoch, one panel per method of a data set.

    Repairs have no epochs and are left out.
    """
    own = [one for one in shown if one.trial.dataset == dataset and one.trial.repair is None]
    runs = [one for one in own if len(one.trial.rows) > 1]
    names, note = _first_few([one.name for one in runs], "methods")
    prefix = "test/group/"
    columns = [key for key in (runs[0].trial.rows[-1] if runs else ()) if key.startswith(prefix)]
    if not 0 < len(columns) <= MOST:
        columns = [f"test/{metric}" for metric in SUMMARIES]
    labels = [column.removeprefix(prefix).removeprefix("test/") for column in columns]
    panels = [
        Panel(
            one.name,
            [_by_epoch(one, key, labels[style], style) for style, key in enumerate(columns)],
            mark=fmean(pick.row["epoch"] for pick in one.picks),
        )
        for one in runs
        if one.name in names
    ]
    notes = [
        "Mean over seeds, with a band from the lowest to the highest; the vertical line is the mean"
        " of the chosen epochs.",
        *note,
    ]
    title = f"Learning curves: {dataset}"
    return Drawing(name, title, "epoch", "test accuracy (%)", panels, notes)


def curve(found: Cells, x: str, metric: Metric) -> Drawing:
    """Return a metric as a function of a key's values, one line per row of the cells."""
    values, ticks = _axis(found)
    names, note = _first_few([_text(line) for line in in_order(found)], "lines")
    series = [
        _over_values(found[line], values, ticks, metric, _text(line), names.index(_text(line)))
        for line in in_order(found)
        if _text(line) in names
    ]
    title, panels = f"{metric.name} over {x}", [Panel("", series, ticks=ticks)] if values else []
    return Drawing("curve", title, x, f"test {metric.name} (%)", panels, [BARS, *note])


def quantities(found: Cells, x: str, metrics: Sequence[Metric]) -> Drawing:
    """Return quantities of analyses over a key's values, one panel per row of the cells."""
    values, ticks = _axis(found)
    names, note = _first_few([_text(line) for line in in_order(found)], "panels")
    labels, shared = _distinct_parts([metric.name for metric in metrics[:MOST]])
    panels = [
        Panel(
            _text(line),
            [
                _over_values(found[line], values, ticks, metric, label, style)
                for style, (metric, label) in enumerate(zip(metrics, labels, strict=False))
            ],
            ticks=ticks,
        )
        for line in in_order(found)
        if values and _text(line) in names
    ]
    title = f"{shared} over {x}"
    what = metrics[0].name.partition("/")[0]
    return Drawing("curve", title, x, what, panels, [BARS, *note], per_row=3, same_y=False)


def _distinct_parts(names: Sequence[str]) -> tuple[list[str], str]:
    """Return the parts in which names with slashes differ, and the parts they share."""
    parts = [name.split("/") for name in names]
    first = last = 0
    shortest = min(map(len, parts))
    while first < shortest - 1 and len({part[first] for part in parts}) == 1:
        first += 1
    while last < shortest - 1 - first and len({part[-1 - last] for part in parts}) == 1:
        last += 1
    labels = ["/".join(part[first : len(part) - last]) for part in parts]
    return labels, " ".join(
        filter(None, ("/".join(parts[0][:first]), "/".join(parts[0][len(parts[0]) - last :])))
    )


def _axis(found: Cells) -> tuple[list[Any], list[str]]:
    """Return the values of the key, and tick labels if they are not all numbers."""
    values = [place[0] for place in in_order(place for row in found.values() for place in row)]
    numbers = [value for value in values if type(value) in (int, float)]
    return values, [] if len(numbers) == len(values) else [show_value(value) for value in values]


def _text(line: Place) -> str:
    return " ".join("-" if value is None else show_value(value) for value in line)


def _over_values(
    row: Mapping[Place, Sequence[Candidate]],
    values: Sequence[Any],
    ticks: Sequence[str],
    metric: Metric,
    label: str,
    style: int,
) -> Series:
    """Return a metric of one row of the cells over the values, without undecided cells."""
    summaries = {
        value: metric.of(cell[0]) for value in values if len(cell := row.get((value,), [])) == 1
    }
    points = [
        (place if ticks else value, summary)
        for place, value in enumerate(values)
        if (summary := summaries.get(value)) is not None
    ]
    means = [summary.mean for _, summary in points]
    bars = [summary.std or 0 for _, summary in points]
    return Series(label, style, [x for x, _ in points], means, y_bars=bars)


def _by_epoch(one: Candidate, column: str, label: str, style: int) -> Series:
    by_epoch: dict[int, list[float]] = {}
    for pick in one.picks:
        for row in pick.trial.rows:
            if (value := number(row, column)) is not None:
                by_epoch.setdefault(row["epoch"], []).append(100 * value)
    epochs = sorted(by_epoch)
    low, high = ([end(by_epoch[epoch]) for epoch in epochs] for end in (min, max))
    mean = [fmean(by_epoch[epoch]) for epoch in epochs]
    return Series(label, style, epochs, mean, band=(low, high))


def _first_few(names: Sequence[str], what: str) -> tuple[list[str], list[str]]:
    """Return the first `MOST` unique names, and a note if there are more."""
    unique = list(dict.fromkeys(names))
    note = f"The figure shows the first {MOST} of {len(unique)} {what}."
    return unique[:MOST], [note] if len(unique) > MOST else []
