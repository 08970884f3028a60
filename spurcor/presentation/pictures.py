"""Pictures that complement a run's metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from spurcor.presentation.saving import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCREEN_DPI = 110
COLUMNS = 5
MOST_NAMED = 20  # most labels that get a legend


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG atomically, with names shown literally: $ does not start a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, SCREEN_DPI)


def draw_histograms(counts: Tensor, names: Sequence[str], title: str, path: Path) -> None:
    """Draw counts (epochs, names, bins) over [-1, 1] as heat maps, one per name.

    Each epoch is scaled to a maximum of 1.
    """
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.4 * columns, 1.9 * rows + 0.6), layout="constrained")
    figure.suptitle(f"{title}, by epoch (from the top)", fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    shares = counts / counts.amax(dim=2, keepdim=True).clamp(min=1)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for i, (axis, name) in enumerate(zip(axes, names, strict=False)):
        extent = (-1, 1, len(counts) + 0.5, 0.5)
        axis.imshow(shares[:, i].numpy(), aspect="auto", extent=extent, cmap="magma_r")
        axis.axvline(0, color="grey", linewidth=0.5)
        axis.set_title(name, fontsize=7)
        axis.set_xticks([-1, 0, 1])
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.tick_params(labelsize=6)
    save(figure, path)


def draw_panels(rows: Mapping[str, Sequence[Tensor]], title: str, path: Path) -> None:
    """Draw a row of panels per name: images (C, H, W) and heat maps (H, W), both in [0, 1]."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(1.1 * columns + 0.4, 1.25 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, panels) in zip(axes, rows.items(), strict=True):
        line[0].set_title(name, fontsize=7, loc="left")
        for axis in line:
            axis.set_axis_off()
        for axis, panel in zip(line, panels, strict=False):
            if panel.dim() == 2:
                axis.imshow(panel.numpy(), cmap="inferno", vmin=0, vmax=1)
            else:  # one channel is shown in grey
                image = panel.expand(3, -1, -1) if len(panel) == 1 else panel
                axis.imshow(image.permute(1, 2, 0).numpy(), vmin=0, vmax=1)
    save(figure, path)


def draw_scatter(points: Tensor, labels: Mapping[str, Any], path: Path) -> None:
    """Draw points (N, 2) in one panel per array of labels (N,), coloured by label."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(labels), 4.6), layout="constrained")
    axes = figure.subplots(1, len(labels), squeeze=False)[0]
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for axis, (title, values) in zip(axes, labels.items(), strict=True):
        names = sorted(set(values.tolist()), key=lambda name: (len(name), name))
        for i, name in enumerate(names):
            x, y = points[np.flatnonzero(values == name)].T.numpy()
            axis.scatter(x, y, s=4, color=colours[i % len(colours)], label=name, linewidths=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("first principal component", fontsize=8)
        axis.set_ylabel("second", fontsize=8)
        axis.tick_params(labelsize=7)
        if len(names) <= MOST_NAMED:
            axis.legend(fontsize=6, markerscale=2, ncols=2)
    save(figure, path)
