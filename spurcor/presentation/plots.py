"""Draw figures for print: python -m spurcor.presentation.plots, with drawings as JSON on stdin.

This runs as a separate process, which imports matplotlib while the files are read and draws while
the tables are computed. Both take seconds.
"""

import gc
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spurcor.errors import RunError
from spurcor.presentation.drawing import Drawing
from spurcor.presentation.saving import save_figure
from spurcor.system.companion import Companion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".pdf")
# Okabe and Ito's colour-blind-safe palette; markers and dashes stay distinct in greyscale.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # names may contain dollar signs
    "pdf.fonttype": 42,  # TrueType; many publishers refuse the default
}


class Artist(Companion):
    """The companion process that draws figures."""

    def __init__(self) -> None:
        super().__init__("spurcor.presentation.plots", MPLBACKEND="agg")

    def draw(self, folder: Path, drawings: Sequence[Drawing]) -> None:
        """Start drawing into an existing folder; `finish` waits for the files."""
        self.tell({"folder": str(folder), "drawings": [asdict(drawing) for drawing in drawings]})

    def finish(self) -> None:
        """Wait until all files are written; raise RunError if drawing failed."""
        code, said = self.wait()
        if code:
            last = said.strip().splitlines()[-1:] or [f"exit code {code}"]
            raise RunError(f"the figures could not be drawn: {last[0]}")


def main() -> None:
    """Draw the figures described on stdin."""
    gc.disable()  # collection takes a quarter of the import time and frees nothing
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_pdf
    import matplotlib.figure

    line = sys.stdin.readline()
    if not line:  # there is nothing to draw
        return
    order = json.loads(line)
    with matplotlib.rc_context(STYLE):
        for drawing in order["drawings"]:
            figure = draw(drawing)
            for ending in ENDINGS:
                save_figure(figure, Path(order["folder"], drawing["name"] + ending))


def write(path: Path, drawing: Drawing) -> None:
    """Draw and save one figure in this process, creating its folder if needed."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        save_figure(draw(asdict(drawing)), path)


class _Layout(NamedTuple):
    """A layout of panels of equal size with one legend below.

    Computed here because matplotlib's own layout engines draw everything twice.
    """

    rows: int
    columns: int
    size: tuple[float, float]  # of the figure, in inches
    margins: tuple[float, ...]  # as `subplots_adjust` takes them
    legend_columns: int


def draw(drawing: dict[str, Any]) -> "Figure":
    """Return the figure of a `Drawing` in dictionary form, as read from JSON."""
    from matplotlib.figure import Figure

    panels = drawing["panels"]
    titles = [
        textwrap.fill(panel["title"], 34 if _columns(drawing) > 1 else 60) for panel in panels
    ]
    layout = _layout(drawing, titles)
    figure = Figure(figsize=layout.size)
    grid = figure.subplots(layout.rows, layout.columns, sharey=drawing["same_y"], squeeze=False)
    figure.subplots_adjust(*layout.margins)
    for index, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        _draw_panel(axes, panel)
        axes.set_title(titles[index])
        if index + layout.columns >= len(panels):  # no panel is below
            axes.set_xlabel(drawing["x"])
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(drawing["y"])
    entries: dict[str, Any] = {}
    for axes in grid.flat[: len(panels)]:
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    figure.legend(
        list(entries.values()), list(entries), loc="lower center", ncols=layout.legend_columns
    )
    return figure


def _columns(drawing: dict[str, Any]) -> int:
    most: int = drawing["per_row"]
    return min(most, len(drawing["panels"]))


def _layout(drawing: dict[str, Any], titles: Sequence[str]) -> _Layout:
    columns = _columns(drawing)
    rows = -(-len(titles) // columns)
    panel_width, panel_height = (2.1 if columns > 1 else 3.6), 2.0
    # Axes that are not shared each have tick labels, which may be long.
    gap_x, left = (0.15, 0.6) if drawing["same_y"] else (0.65, 0.8)
    right = 0.12
    top = 0.27 + 0.15 * max(title.count("\n") for title in titles)
    gap_y = 0.5 + top
    width = left + right + columns * panel_width + (columns - 1) * gap_x
    labels = {series["label"] for panel in drawing["panels"] for series in panel["series"]}
    longest = max(map(len, labels), default=0)
    most = max(1, min(len(labels), int(width / (0.07 * longest + 0.6))))
    legend_rows = max(1, -(-len(labels) // most))
    bottom = 0.6 + 0.19 * legend_rows
    height = top + bottom + rows * panel_height + (rows - 1) * gap_y
    return _Layout(
        rows,
        columns,
        (width, height),
        (
            left / width, bottom / height, 1 - right / width, 1 - top / height,
            gap_x / panel_width, gap_y / panel_height,
        ),
        max(1, -(-len(labels) // legend_rows)),  # so that rows have similar lengths
    )  # fmt: skip


def _draw_panel(axes: "Axes", panel: dict[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter

    for series in panel["series"]:
        _draw_series(axes, series)
    if panel["ticks"]:
        axes.set_xticks(range(len(panel["ticks"])), panel["ticks"])
    elif all(isinstance(x, int) for series in panel["series"] for x in series["x"]):
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    if panel["log_x"]:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if panel["mark"] is not None:
        axes.axvline(panel["mark"], color="#444444", linewidth=0.8)


def _draw_series(axes: "Axes", series: dict[str, Any]) -> None:
    style = series["style"]
    colour, dashes = COLOURS[style], DASHES[style] if series["line"] else "none"
    if series["band"] is not None:
        axes.fill_between(series["x"], *series["band"], color=colour, alpha=0.15, linewidth=0)
    if series["y_bars"]:
        axes.errorbar(
            series["x"], series["y"], xerr=series["x_bars"] or None, yerr=series["y_bars"],
            label=series["label"], color=colour, marker=MARKERS[style], markersize=5,
            linestyle=dashes, linewidth=1.2, capsize=2,
        )  # fmt: skip
    else:
        label = series["label"]
        axes.plot(
            series["x"], series["y"], color=colour, linestyle=dashes, linewidth=1.4, label=label,
            marker=None if series["line"] else MARKERS[style], markersize=4,
        )  # fmt: skip


if __name__ == "__main__":
    main()
