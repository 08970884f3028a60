"""Reports of sweeps, made from the files of their runs alone."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spurcor.files import write_text
from spurcor.reports import options as choices
from spurcor.reports import render, tables
from spurcor.reports.comparison import comparison
from spurcor.reports.document import Figure, document
from spurcor.reports.listing import listing
from spurcor.reports.options import DEFAULT_ROWS, Options
from spurcor.reports.published import published
from spurcor.reports.selection import STANDARD, Candidate
from spurcor.reports.tables import Metric, Table
from spurcor.reports.trials import Missing, Trial, collect

TEX = ("methods", "criteria", "table")
# What a report may leave out although an earlier one of the same sweeps had it.
OPTIONAL = (
    *(f"{name}.*" for name in ("methods", "criteria", "comparison", "published", "settings")),
    *("table.*", "runs.csv", "curve.*", "learning_curves_*", "worst_vs_average.*"),
)


@dataclass(frozen=True)
class Report:
    """What was written, and what a person is shown of it."""

    folder: Path
    files: tuple[Path, ...]
    tables: Mapping[str, Table]
    missing: tuple[Missing, ...]
    skipped: Mapping[str, str]


def write_report(outputs: Path, sweeps: Sequence[str], options: Options) -> Report:
    """Write the report of one or several sweeps to <outputs>/reports/<names>/.

    Raises UserError for a sweep that does not exist and for options that no run knows.
    """
    found = collect(outputs, sweeps)
    texts: dict[str, str] = {}
    shown: list[Table] = []
    figures: list[Figure] = []
    folder = outputs / "reports" / _name(sweeps)
    if found.trials:
        trials = choices.keep(found.trials, options.keep)
        metrics = choices.check(options, trials)
        judged = {
            criterion: tables.judge_all(trials, criterion, found.planned)
            for criterion in dict.fromkeys([*STANDARD, options.criterion])
        }
        candidates = tables.chosen(judged[options.criterion])
        shown = [
            tables.methods(judged[options.criterion], metrics),
            tables.criteria(judged, metrics),
            comparison(candidates, metrics[0], options.baseline),
            published(candidates),
            tables.settings(judged[options.criterion], metrics),
        ]
        if (options.rows, options.columns) != (DEFAULT_ROWS, ()):
            pivot = tables.pivot(trials, options.rows, options.columns, metrics, options.criterion)
            shown.insert(1, pivot)
        shown = [table for table in shown if table.records]
        texts = {f"{table.name}.csv": render.csv_text(table) for table in shown}
        texts |= {f"{t.name}.tex": render.latex(t) for t in shown if t.name in TEX}
        texts["runs.csv"] = listing(judged)
        if options.plots:
            folder.mkdir(parents=True, exist_ok=True)
            figures = _figures(folder, candidates, trials, metrics, options)
    texts["report.md"] = document(sweeps, found, shown, figures, options)
    files = [path for figure in figures for path in figure.paths]
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
        files.append(folder / name)
    for path in [path for pattern in OPTIONAL for path in folder.glob(pattern)]:
        if path not in files:
            path.unlink()
    by_name = {table.name: table for table in shown}
    return Report(folder, tuple(files), by_name, found.missing, found.skipped)


def _figures(
    folder: Path,
    candidates: Sequence[Candidate],
    trials: Sequence[Trial],
    metrics: Sequence[Metric],
    options: Options,
) -> list[Figure]:
    from spurcor.reports import plots

    figures = [
        Figure(
            "Worst group against average",
            *plots.worst_against_average(candidates, folder / "worst_vs_average"),
        )
    ]
    datasets = list(dict.fromkeys(one.trial.dataset for one in candidates))
    for dataset in datasets[: plots.MOST]:
        own = [one for one in candidates if one.trial.dataset == dataset]
        path = folder / f"learning_curves_{_slug(dataset)}"
        figures.append(Figure(f"Learning curves: {dataset}", *plots.learning_curves(own, path)))
    if options.curve is not None:
        wanted = options.curve
        metric = choices.metric("curve.metric", wanted.metric, trials, trials[0].rows[-1])
        _, cells = tables.cells(trials, wanted.lines, [wanted.x], options.criterion)
        figures.append(
            Figure(
                f"{metric.name} over {wanted.x}",
                *plots.curve(cells, wanted.x, metric, folder / "curve"),
            )
        )
    return [figure for figure in figures if figure.paths]


def _name(sweeps: Sequence[str]) -> str:
    """A folder's name; file systems end at 255 bytes."""
    name = "+".join(sweeps)
    if len(name) <= 200:
        return name
    return f"{name[:190]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")
