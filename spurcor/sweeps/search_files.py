"""The trials of a search as a table and as a picture, in the folder of the sweep."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from spurcor.presentation.drawing import MOST, Drawing, Panel, Series
from spurcor.presentation.tables import short_names
from spurcor.sweeps.study import Study, Trial
from spurcor.system.files import write_text


def write_search(study: Study) -> list[Path]:
    """Write trials.csv and, if a trial has a value, search.png; return the files."""
    from spurcor.presentation.plots import write

    trials = study.trials()
    table = study.folder / "trials.csv"
    write_text(table, _csv(trials, study.options.metric))
    if not any(trial.value is not None for trial in trials):
        return [table]
    picture = study.folder / "search.png"
    write(picture, search_drawing(study, trials, study.importances()))
    return [table, picture]


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
    keys = {key: None for trial in known for key in trial.values}
    ranked = sorted(keys, key=lambda key: -importances.get(key, 0.0))[: MOST - 1]
    names = short_names(ranked)
    for key in ranked:
        share = f", importance {importances[key]:.2f}" if key in importances else ""
        panels.append(_slice(key, names[key] + share, study, known))
    metric = study.options.metric
    return Drawing("search", study.folder.name, "trial, or value of the key", metric, panels)


def _slice(key: str, title: str, study: Study, known: Sequence[Trial]) -> Panel:
    having = [trial for trial in known if key in trial.values]
    y = [float(trial.value or 0) for trial in having]
    if any(isinstance(trial.values[key], str) for trial in having):
        ticks = sorted({str(trial.values[key]) for trial in having}, key=_place)
        x = [ticks.index(str(trial.values[key])) for trial in having]
        return Panel(title, [Series("a trial", 0, x, y, line=False)], ticks=ticks)
    x = [trial.values[key] for trial in having]
    return Panel(title, [Series("a trial", 0, x, y, line=False)], log_x=study.space.is_log(key))


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
    writer.writerow(["trial", "state", metric, "seeds", *keys, "message"])
    for trial in trials:
        scores = " ".join(map(repr, trial.scores))
        drawn = [trial.values.get(key, "") for key in keys]
        value = "" if trial.value is None else trial.value
        writer.writerow([trial.number, trial.state, value, scores, *drawn, trial.message])
    return text.getvalue()
