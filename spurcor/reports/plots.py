"""Figures for print: what a person would look at, no more."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from spurcor.files import replacing
from spurcor.reports.runs import number
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Cells, Metric, in_order
from spurcor.reports.trials import show_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinct to the colour-blind; markers and dashes tell it apart in grey.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
MOST = len(COLOURS)  # methods, lines or panels in one figure
SUMMARIES = ("worst", "average", "aligned", "conflicting")
STYLE: "dict[Any, Any]" = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text; many publishers refuse the default
}


def figure(
    path: Path,
    panels: Sequence[tuple[str, Callable[["Axes"], None]]],
    labels: tuple[str, str],
    per_row: int = 4,
    same_y: bool = True,
) -> list[Path]:
    """Draw titled panels with one legend below them, as PNG and PDF; returns both paths."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(per_row, len(panels))
    rows = -(-len(panels) // columns)
    width = max(4.2, 2.6 * columns)
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(width, 2.6 * rows + 0.7), layout="constrained")
        grid = drawn.subplots(rows, columns, sharey=same_y, squeeze=False)
        for index, (axes, (title, draw)) in enumerate(zip(grid.flat, panels, strict=False)):
            draw(axes)
            axes.set_title(textwrap.fill(title, 34))
            if index + columns >= len(
                panels
            ):  # none below it; a label of all would meet the legend
                axes.set_xlabel(labels[0])
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        drawn.supylabel(labels[1], fontsize=9)
        _legend(drawn, width)
        paths = [path.with_suffix(".png"), path.with_suffix(".pdf")]
        for target in paths:
            # Without dates the same runs give the same files.
            dates = {"CreationDate": None} if target.suffix == ".pdf" else {}
            with replacing(target) as beside:
                kind = target.suffix.removeprefix(".")
                drawn.savefig(beside, format=kind, dpi=200, metadata=dates)
    return paths


def worst_against_average(shown: Sequence[Candidate], path: Path) -> tuple[list[Path], list[str]]:
    """One marker per method and data set, with the standard deviation over seeds."""
    worst, average = Metric("worst", "test/worst"), Metric("average", "test/average")
    known = [one for one in shown if worst.of(one) and average.of(one)]
    names, note = _capped([one.name for one in known], "methods")
    datasets = list(dict.fromkeys(one.trial.dataset for one in known))[:MOST]

    def panel(dataset: str) -> Callable[["Axes"], None]:
        def draw(axes: "Axes") -> None:
            for one in known:
                x, y = average.of(one), worst.of(one)
                if one.trial.dataset != dataset or one.name not in names or not x or not y:
                    continue
                style = names.index(one.name)
                axes.errorbar(
                    x.mean, y.mean, xerr=x.std, yerr=y.std, label=one.name, color=COLOURS[style],
                    marker=MARKERS[style], markersize=6, linestyle="none", capsize=2, linewidth=1,
                )  # fmt: skip

        return draw

    panels = [(dataset, panel(dataset)) for dataset in datasets]
    if not panels:
        return [], []
    labels = ("average test accuracy (%)", "worst-group test accuracy (%)")
    return figure(path, panels, labels, per_row=3, same_y=False), note


def learning_curves(shown: Sequence[Candidate], path: Path) -> tuple[list[Path], list[str]]:
    """Test accuracy by epoch, a panel per method: mean, and least to greatest over the seeds.

    A dotted line stands at the mean of the epochs that were chosen.
    """
    runs = [one for one in shown if one.trial.repair is None and len(one.trial.rows) > 1]
    names, note = _capped([one.name for one in runs], "methods")
    prefix = "test/group/"
    columns = [key for key in (runs[0].trial.rows[-1] if runs else ()) if key.startswith(prefix)]
    if not 0 < len(columns) <= MOST:
        columns = [f"test/{name}" for name in SUMMARIES]

    def panel(one: Candidate) -> Callable[["Axes"], None]:
        def draw(axes: "Axes") -> None:
            for style, column in enumerate(columns):
                by_epoch: dict[int, list[float]] = {}
                for pick in one.picks:
                    for row in pick.trial.rows:
                        if (value := number(row, column)) is not None:
                            by_epoch.setdefault(row["epoch"], []).append(100 * value)
                epochs = sorted(by_epoch)
                low, high = ([f(by_epoch[e]) for e in epochs] for f in (min, max))
                axes.fill_between(epochs, low, high, color=COLOURS[style], alpha=0.15, linewidth=0)
                mean = [fmean(by_epoch[epoch]) for epoch in epochs]
                label = column.removeprefix(prefix).removeprefix("test/")
                _line(axes, epochs, mean, style, label)
            axes.axvline(fmean(pick.row["epoch"] for pick in one.picks), color="#444444", ls=":")

        return draw

    panels = [(one.name, panel(one)) for one in runs if one.name in names]
    if not panels:
        return [], []
    return figure(path, panels, ("epoch", "test accuracy (%)")), note


def curve(found: Cells, x: str, metric: Metric, path: Path) -> tuple[list[Path], list[str]]:
    """A metric over the values of a key, a line per row: mean and deviation over seeds."""
    places = in_order(place for row in found.values() for place in row)
    values: list[Any] = [place[0] for place in places]
    numeric = all(isinstance(value, int | float) for value in values)
    lines = in_order(found)
    titles = {line: " ".join("-" if v is None else show_value(v) for v in line) for line in lines}
    names, note = _capped([titles[line] for line in lines], "lines")

    def draw(axes: "Axes") -> None:
        for line in lines:
            if titles[line] not in names:
                continue
            points = []
            for place, value in zip(places, values, strict=True):
                candidates = found[line].get(place, [])
                summary = metric.of(candidates[0]) if len(candidates) == 1 else None
                if summary is not None:
                    points.append((value if numeric else show_value(value), summary))
            style = names.index(titles[line])
            axes.errorbar(
                [value for value, _ in points],
                [summary.mean for _, summary in points],
                yerr=[summary.std or 0 for _, summary in points],
                label=titles[line], color=COLOURS[style], marker=MARKERS[style],
                linestyle=DASHES[style], linewidth=1.4, markersize=4, capsize=2,
            )  # fmt: skip

    if not values:
        return [], []
    return figure(path, [("", draw)], (x, f"test {metric.name} (%)")), note


def _line(axes: "Axes", x: Sequence[Any], y: Sequence[float], style: int, label: str) -> None:
    axes.plot(x, y, color=COLOURS[style], linestyle=DASHES[style], linewidth=1.4, label=label)


def _capped(names: Sequence[str], what: str) -> tuple[list[str], list[str]]:
    """Each name once, as many as can be told apart, and the sentence that says so."""
    unique = list(dict.fromkeys(names))
    note = f"The figure shows the first {MOST} of {len(unique)} {what}."
    return unique[:MOST], [note] if len(unique) > MOST else []


def _legend(drawn: "Figure", width: float) -> None:
    """One legend below all panels, in as many columns as fit."""
    entries: dict[str, Any] = {}
    for axes in drawn.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    longest = max(map(len, entries), default=0)
    columns = max(1, min(len(entries), int(width / (0.075 * longest + 0.55))))
    if entries:
        below: Literal["outside lower center"] = "outside lower center"
        drawn.legend(list(entries.values()), list(entries), loc=below, ncols=columns)
