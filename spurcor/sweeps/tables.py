"""Tables of the points of a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from spurcor.errors import UserError
from spurcor.presentation.tables import percent, short_names
from spurcor.sweeps.states import PointState

if TYPE_CHECKING:
    from spurcor.sweeps.study import Trial

STYLES = {"done": ""} | dict.fromkeys(("failed", "damaged"), "red")


STYLES |= dict.fromkeys(("held", "interrupted", "missing"), "yellow")


PLACES = ("paths.", "sweep=", "site.", "site=", "tracker", "hydra")


def sweep_table(points: Sequence["PointState"]) -> Table:
    """Return a table of status and worst-group accuracies of each point of a sweep."""
    table = Table("point", "status", "run")
    table.add_column("val worst", justify="right")
    table.add_column("test worst", justify="right")
    table.add_column("+ repair", justify="right")
    for point, overrides in zip(points, distinct(points), strict=True):
        cells = [percent(value) for value in figures(point)]
        status = f"{point.status} {point.message}".strip()
        table.add_row(overrides, status, point.run, *cells, style=STYLES.get(point.status))
    return table


def search_table(metric: str, trials: Sequence["Trial"]) -> Table:
    """Return a table of the trials of a search: their values, and those of the searched keys."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    names = short_names(keys)
    table = Table("trial", *(names[key] for key in keys))
    table.add_column(metric, justify="right")
    table.add_column("seeds", justify="right")
    for trial in trials:
        drawn = (trial.values.get(key, "-") for key in keys)
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in drawn]
        value = trial.state if trial.value is None else f"{trial.value:.4g}"
        scores = " ".join(f"{score:.4g}" for score in trial.scores) or trial.message
        table.add_row(str(trial.number), *cells, value, scores, style=STYLES.get(trial.state))
    return table


def status_table(points: Sequence["PointState"]) -> Table:
    """Return a table of status and progress of each point of a sweep."""
    table = Table("point", "status", "progress", "job", "run")
    for point, overrides in zip(points, distinct(points), strict=True):
        status = f"{point.status} {point.message}".strip()
        job = point.entry["job"] or ""
        cells = (overrides, status, point.progress, job, point.run)
        table.add_row(*cells, style=STYLES.get(point.status))
    return table


def distinct(points: Sequence["PointState"]) -> list[str]:
    """Return each point's overrides, without shared ones and those on where it runs."""
    typed = [point.entry["overrides"] for point in points]
    shared = set.intersection(*map(set, typed)) if len(typed) > 1 else set()
    return [
        " ".join(word for word in words if word not in shared and not word.startswith(PLACES))
        for words in typed
    ]


def figures(state: PointState) -> tuple[float | None, float | None, float | None]:
    """Return worst-group accuracy on VAL, on TEST, and there after the first requested repair.

    None for a value that is missing or cannot be read.
    """
    from spurcor.runs.results import read_result

    try:
        result = read_result(Path(state.entry["directory"]))
    except (UserError, OSError):  # not finished, or damaged as `inspected` reports
        return None, None, None
    repairs = [need.split("/")[1] for need in state.entry["needs"] if need.startswith("dfr/")]
    repaired = [(result["dfr"].get(name, {}).get("test") or {}).get("worst") for name in repairs]
    worst = [None if result[split] is None else result[split]["worst"] for split in ("val", "test")]
    return worst[0], worst[1], repaired[0] if repaired else None
