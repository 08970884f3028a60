"""The trials of a search as a table and as a picture, in the folder of the sweep."""

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spurcor.presentation.drawing import MOST, Drawing, Panel, Series
from spurcor.presentation.tables import short_names
from spurcor.sweeps.study import Study, Trial
from spurcor.system.files import write_text


def write_search(study: Study) -> list[Path]:
    """Write trials.csv and, if a trial has a value, the pictures; return the files."""
    from spurcor.presentation.plots import write

    trials = study.trials()
    table = study.folder / "trials.csv"
    write_text(table, _csv(trials, study.options.metric))
    if not any(trial.value is not None for trial in trials):
        return [table]
    importances = study.importances()
    drawings = [search_drawing(study, trials, importances)]
    drawings += [one for one in [parallel_drawing(study, importances)] if one.panels]
    pictures = [study.folder / f"{drawing.name}.png" for drawing in drawings]
    for path, drawing in zip(pictures, drawings, strict=True):
        write(path, drawing)
    return [table, *pictures]


def run_tags(study: Study) -> dict[Path, dict[str, str]]:
    """Return number and value of its trial for each run, by directory, as tags for the trackers."""
    outputs, name = study.folder.parents[1], study.folder.name
    return {
        outputs / run: {f"trial.{name}": str(one.number), f"trial.{name}.value": f"{one.value:.6g}"}
        for one in reversed(study.ranked())  # a run of two trials has the tags of the better one
        for run in one.runs
    }


def search_rows(study: Study) -> list[dict[str, float]]:
    """Return the value of each trial, and the best so far, as rows for the trackers."""
    known = [trial for trial in study.trials() if trial.value is not None]
    metric, so_far = study.options.metric, _best_so_far(study, known)
    return [
        {
            "step": trial.number,
            "time": float(trial.ended or 0),
            f"search/{metric}": float(trial.value or 0),
            f"search/best/{metric}": best,
        }
        for trial, best in zip(known, so_far, strict=True)
    ]


def _best_so_far(study: Study, known: Sequence[Trial]) -> list[float]:
    better = max if study.options.direction == "maximize" else min
    return list(itertools.accumulate((float(trial.value or 0) for trial in known), better))


def search_drawing(
    study: Study, trials: Sequence[Trial], importances: Mapping[str, float]
) -> Drawing:
    """Return the best value so far over the trials, and the values over each searched key.

    The most important keys come first.
    """
    known = [trial for trial in trials if trial.value is not None]
    values = [float(trial.value or 0) for trial in known]
    so_far = _best_so_far(study, known)
    numbers = [trial.number for trial in known]
    each = Series("a trial", 0, numbers, values, line=False)
    panels = [Panel("best so far", [each, Series("best so far", 1, numbers, so_far)])]
    ranked = _ranked(known, importances)[: MOST - 1]
    names = short_names(ranked)
    for key in ranked:
        share = f", importance {importances[key]:.2f}" if key in importances else ""
        panels.append(_slice(key, names[key] + share, study, known))
    metric = study.options.metric
    return Drawing("search", study.folder.name, "trial, or value of the key", metric, panels)


QUARTERS = ("best quarter", "second", "third", "worst")


def parallel_drawing(study: Study, importances: Mapping[str, float]) -> Drawing:
    """Return parallel coordinates: a line for each trial over the keys that all trials have.

    Each key runs from its lowest value to its highest, and the last place is the metric. There are
    no panels with fewer than two keys or four trials.
    """
    known = [trial for trial in study.ranked() if trial.value is not None]
    keys = [k for k in _ranked(known, importances) if all(k in trial.values for trial in known)]
    keys = keys[: MOST - 1]
    panels = []
    if len(keys) > 1 and len(known) >= len(QUARTERS):
        columns = [_unit(key, study, known) for key in keys]
        columns.append(_scaled([float(trial.value or 0) for trial in known]))
        lines = list(zip(*columns, strict=True))
        bounds = [round(len(lines) * part / len(QUARTERS)) for part in range(len(QUARTERS) + 1)]
        series = []
        # The best quarter is drawn last, on top.
        for style in reversed(range(len(QUARTERS))):
            own = lines[bounds[style] : bounds[style + 1]]
            x = [place for _ in own for place in (*range(len(columns)), math.nan)]
            y = [value for line in own for value in (*line, math.nan)]
            series.append(Series(QUARTERS[style], style, x, y))
        names = short_names(keys)
        places = [*(names[key].replace("_", "\n") for key in keys), study.options.metric]
        panels = [Panel("", series, ticks=places)]
    return Drawing("parallel", study.folder.name, "", "from lowest to highest", panels)


def _unit(key: str, study: Study, known: Sequence[Trial]) -> list[float]:
    """Return the values of a key between 0, its lowest, and 1; words in their order."""
    x, ticks = _axis(key, known)
    return _scaled([math.log(v) for v in x] if not ticks and study.space.is_log(key) else x)


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [0.5 if high == low else (value - low) / (high - low) for value in values]


def _ranked(known: Sequence[Trial], importances: Mapping[str, float]) -> list[str]:
    """Return the searched keys, the most important first."""
    keys = {key: None for trial in known for key in trial.values}
    return sorted(keys, key=lambda key: -importances.get(key, 0.0))


def _slice(key: str, title: str, study: Study, known: Sequence[Trial]) -> Panel:
    having = [trial for trial in known if key in trial.values]
    y = [float(trial.value or 0) for trial in having]
    x, ticks = _axis(key, having)
    series = Series("a trial", 0, x, y, line=False)
    return Panel(title, [series], ticks=ticks, log_x=not ticks and study.space.is_log(key))


def _axis(key: str, having: Sequence[Trial]) -> tuple[list[Any], list[str]]:
    """Return the values of a key as numbers; for words their places, with the words as ticks."""
    values = [trial.values[key] for trial in having]
    if not any(isinstance(value, str) for value in values):
        return values, []
    ticks = sorted({str(value) for value in values}, key=_place)
    return [ticks.index(str(value)) for value in values], ticks


def _place(text: str) -> tuple[float, str]:
    """Return the sort key of a choice: numbers by size, before words."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _csv(trials: Sequence[Trial], metric: str) -> str:
    keys = list({key: None for trial in trials for key in trial.values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", metric, "seeds", *keys, "runs", "message"])
    for trial in trials:
        scores = " ".join(map(repr, trial.scores))
        drawn = [trial.values.get(key, "") for key in keys]
        value = "" if trial.value is None else trial.value
        runs = " ".join("/".join(Path(run).parts[-2:]) for run in trial.runs)
        writer.writerow([trial.number, trial.state, value, scores, *drawn, runs, trial.message])
    return text.getvalue()
