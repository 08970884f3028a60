"""Figures of quantities over epochs, for print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from spurcor.presentation.saving import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONG = 500  # epochs; beyond this the axis is logarithmic, which keeps the first ones visible
Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes with values (T,) by label: lines with bands, stacked areas, and points."""

    title: str
    y: str
    lines: Mapping[str, Tensor]
    bands: Mapping[str, Tensor] = field(default_factory=dict)
    stacked: Mapping[str, Tensor] = field(default_factory=dict)
    points: Mapping[str, Points] = field(default_factory=dict)
    log: bool = False
    limits: tuple[float, float] | None = None


def draw(path: Path, title: str, epochs: Sequence[int], panels: Sequence[Panel]) -> None:
    """Draw panels of values over epochs, each with a legend below, and save the figure."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from spurcor.presentation.plots import STYLE

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns, 3.1 * rows + 0.3), layout="constrained")
        figure.suptitle(title, fontsize=10)
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, epochs, panel)
        save_figure(figure, path)


def _draw_panel(axes: "Axes", epochs: Sequence[int], panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.set_ylabel(panel.y)
    axes.set_xlabel("epoch")
    _stack(axes, epochs, panel)
    _draw_lines(axes, epochs, panel)
    for label, (x, y) in panel.points.items():
        axes.plot(x, y, "o", color="#CC0000", markersize=3, markerfacecolor="none", label=label)
    _scale_y(axes, panel)
    _scale_x(axes, epochs)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def _stack(axes: "Axes", epochs: Sequence[int], panel: Panel) -> None:
    """Stack positive values upwards and negative values downwards from zero."""
    from spurcor.presentation.plots import COLOURS

    above, below = np.zeros(len(epochs)), np.zeros(len(epochs))
    for style, (label, value) in enumerate(panel.stacked.items()):
        y, colour = value.numpy(), COLOURS[style % len(COLOURS)]
        base = np.where(y >= 0, above, below)
        top = base + y
        axes.fill_between(epochs, base, top, color=colour, alpha=0.5, linewidth=0, label=label)
        above, below = above + np.maximum(y, 0), below + np.minimum(y, 0)


def _draw_lines(axes: "Axes", epochs: Sequence[int], panel: Panel) -> None:
    """Draw lines with their bands; on top of stacked areas they are black."""
    from spurcor.presentation.plots import COLOURS, DASHES, MARKERS

    alone = len(epochs) == 1  # a line through one point is invisible
    for style, (label, value) in enumerate(panel.lines.items()):
        y, colour, dashes = (
            value.numpy(),
            COLOURS[style % len(COLOURS)],
            DASHES[style % len(DASHES)],
        )
        if panel.stacked:
            colour, dashes = "#000000", "-"
        if label in panel.bands:
            band = panel.bands[label].numpy()
            axes.fill_between(epochs, y - band, y + band, color=colour, alpha=0.12, linewidth=0)
        marker = MARKERS[(style + len(panel.stacked)) % len(MARKERS)] if alone else ""
        axes.plot(
            epochs, y, color=colour, linestyle=dashes, marker=marker, linewidth=1.4, label=label
        )


def _scale_y(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import NullFormatter

    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # STYLE switches off math text, which powers need
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)


def _scale_x(axes: "Axes", epochs: Sequence[int]) -> None:
    """Label whole epochs; the axis is logarithmic for long training, to show the first epochs."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    if max(epochs) <= LONG:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return
    axes.set_xscale("symlog", linthresh=1)
    ticks = [0, *(10**k for k in range(len(str(max(epochs)))))]
    axes.set_xticks(ticks, map(str, ticks))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left=0 if min(epochs) == 0 else min(epochs))
