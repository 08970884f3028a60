"""Figures of quantities over the epochs, for print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from spurcor.system.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONG = 500  # epochs from which on the first ones need room of their own
Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: values (T,) by label as lines, with bands, or stacked; points apart."""

    title: str
    y: str
    lines: Mapping[str, Tensor]
    bands: Mapping[str, Tensor] = field(default_factory=dict)
    stacked: Mapping[str, Tensor] = field(default_factory=dict)
    points: Mapping[str, Points] = field(default_factory=dict)
    log: bool = False
    limits: tuple[float, float] | None = None


def draw(path: Path, title: str, epochs: Sequence[int], panels: Sequence[Panel]) -> None:
    """Panels side by side over the epochs, each with its legend below."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from spurcor.presentation.plots import STYLE

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE), replacing(path) as beside:
        figure = Figure(figsize=(3.6 * columns, 3.1 * rows + 0.3), layout="constrained")
        figure.suptitle(title, fontsize=10)
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, epochs, panel)
        figure.savefig(beside, format="png", dpi=150)


def _draw_panel(axes: "Axes", epochs: Sequence[int], panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter

    from spurcor.presentation.plots import COLOURS, DASHES, MARKERS

    x = np.asarray(epochs)
    axes.set_title(panel.title)
    axes.set_ylabel(panel.y)
    axes.set_xlabel("epoch")
    style = 0
    above, below = np.zeros(len(x)), np.zeros(len(x))
    for label, value in panel.stacked.items():
        y = value.numpy()
        # What is positive is piled up above zero, what is negative below.
        base = np.where(y >= 0, above, below)
        axes.fill_between(
            x, base, base + y, color=COLOURS[style], alpha=0.5, linewidth=0, label=label
        )
        above, below = above + np.maximum(y, 0), below + np.minimum(y, 0)
        style += 1
    one = len(x) == 1  # a line of one point is not seen
    for label, value in panel.lines.items():
        y, colour = value.numpy(), "#000000" if panel.stacked else COLOURS[style % len(COLOURS)]
        if label in panel.bands:
            band = panel.bands[label].numpy()
            axes.fill_between(x, y - band, y + band, color=colour, alpha=0.12, linewidth=0)
        marker = MARKERS[style % len(MARKERS)] if one else ""
        dashes = "-" if panel.stacked else DASHES[style % len(DASHES)]
        axes.plot(x, y, color=colour, linestyle=dashes, marker=marker, linewidth=1.4, label=label)
        style += 1
    for label, (at, rates) in panel.points.items():
        axes.plot(
            at, rates, "o", color="#CC0000", markersize=3, markerfacecolor="none", label=label
        )
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # the style takes text as it is, without powers
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    if max(epochs) > LONG:
        axes.set_xscale("symlog", linthresh=1)
        ticks = [0, *(10**k for k in range(len(str(max(epochs)))))]
        axes.set_xticks(ticks, map(str, ticks))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(left=0 if min(epochs) == 0 else min(epochs))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
