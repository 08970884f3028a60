"""Figures as data: panels of series."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST = 8  # most methods, lines or panels in one figure


@dataclass(frozen=True)
class Series:
    """Points or a line; series with the same label have the same `style` in every panel."""

    label: str
    style: int
    x: Sequence[Any]
    y: Sequence[float]
    x_bars: Sequence[float] = ()
    y_bars: Sequence[float] = ()
    band: tuple[Sequence[float], Sequence[float]] | None = None
    line: bool = True


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `mark` is the x of a vertical line, `ticks` are labels of x = 0, 1, ..."""

    title: str
    series: Sequence[Series]
    mark: float | None = None
    ticks: Sequence[str] = ()
    log_x: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure of panels with one legend; `name` is its file name without the extension."""

    name: str
    title: str
    x: str
    y: str
    panels: Sequence[Panel]
    notes: Sequence[str] = ()
    per_row: int = 4
    same_y: bool = True
