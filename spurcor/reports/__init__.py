"""Reports of sweeps, computed only from the files of their runs."""

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spurcor.presentation import drawing, plots, render
from spurcor.presentation.drawing import Drawing
from spurcor.presentation.tables import Table
from spurcor.reports import drawings, pivot, tables
from spurcor.reports import options as choices
from spurcor.reports.abstention import abstention
from spurcor.reports.budgets import best_of_n, budgets
from spurcor.reports.collection import Missing, collect
from spurcor.reports.comparison import comparison
from spurcor.reports.document import document
from spurcor.reports.inferred import inferred_groups
from spurcor.reports.listing import listing
from spurcor.reports.options import DEFAULT_ROWS, Options
from spurcor.reports.published import entries, published
from spurcor.reports.selection import STANDARD
from spurcor.reports.tables import Judged, Metric
from spurcor.reports.trials import Trial
from spurcor.reports.tuned import tuned_entries
from spurcor.system.files import write_text

AS_LATEX = ("methods", "criteria", "table", "selective")
AS_MARKDOWN = ("table", "selective")  # each in its own file
# Files that a report may write; those left by an earlier report of the same sweeps are removed.
OPTIONAL = (
    *(f"{name}.*" for name in ("methods", "criteria", "comparison", "published", "settings")),
    *("table.*", "selective.*", "runs.csv", "curve.*", "learning_curves_*", "worst_vs_average.*"),
    *("best_of_n.*", "budgets.*", "groups.*"),
)


@dataclass(frozen=True)
class Report:
    """The files of a report, and the tables and gaps to show on the terminal."""

    folder: Path
    files: tuple[Path, ...]
    tables: Mapping[str, Table]
    missing: tuple[Missing, ...]
    skipped: Mapping[str, str]
    tuned: tuple[Path, ...] = ()


def write_report(outputs: Path, sweeps: Sequence[str], options: Options) -> Report:
    """Write the report of one or several sweeps to <outputs>/reports/<names>/.

    Raises UserError for a sweep that does not exist and for options that match no run.
    """
    folder = outputs / "reports" / _name(sweeps)
    figures: list[Drawing] = []
    shown: list[Table] = []
    texts: dict[str, str] = {}
    tuned: dict[Path, str] = {}
    with plots.Artist() if options.plots else contextlib.nullcontext() as artist:
        found = collect(outputs, sweeps, all_repairs=options.repairs == "all")
        if found.trials:
            found = replace(found, trials=tuple(choices.keep(found.trials, options.keep)))
            metrics = choices.check(options, found.trials)
            main = tables.judge_all(found.trials, options.criterion, found.planned)
            if options.tuned is not None:
                tuned = tuned_entries(outputs, sweeps, main, options.tuned)
            if artist is not None:  # first, to draw in parallel with the tables
                figures = _figures(main, metrics[0], found.trials, options)
                folder.mkdir(parents=True, exist_ok=True)
                artist.draw(folder, figures)
            criteria = dict.fromkeys([*STANDARD, options.criterion])
            judged = {one: tables.judge_all(found.trials, one, found.planned) for one in criteria}
            shown = _tables(judged, found.trials, metrics, options)
            texts = {**_texts(shown), "runs.csv": listing(judged)}
        texts["report.md"] = document(sweeps, found, shown, figures, options)
        own = {folder / name: text for name, text in texts.items()}
        for path, text in {**own, **tuned}.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        if artist is not None:
            artist.finish()
    names = [f"{figure.name}{ending}" for figure in figures for ending in plots.ENDINGS]
    files = (*own, *(folder / name for name in names))
    _remove_outdated(folder, files)
    by_name = {table.name: table for table in shown}
    return Report(folder, files, by_name, found.missing, found.skipped, tuple(tuned))


def _texts(shown: Sequence[Table]) -> dict[str, str]:
    """Return the text files of the tables, by file name."""
    texts = {f"{table.name}.csv": render.csv_text(table) for table in shown}
    texts |= {f"{table.name}.tex": render.latex(table) for table in shown if table.name in AS_LATEX}
    pasted = [table for table in shown if table.name in AS_MARKDOWN]
    return texts | {f"{table.name}.md": f"{render.markdown(table)}\n" for table in pasted}


def _remove_outdated(folder: Path, files: Sequence[Path]) -> None:
    """Remove optional files of earlier reports that this one does not write."""
    for pattern in OPTIONAL:
        for path in set(folder.glob(pattern)) - set(files):
            path.unlink()


def _tables(
    judged: Mapping[str, Judged],
    trials: Sequence[Trial],
    metrics: Sequence[Metric],
    options: Options,
) -> list[Table]:
    main = judged[options.criterion]
    candidates = tables.chosen(main)
    shown = [
        tables.methods(main, metrics),
        tables.criteria(judged, metrics),
        budgets(main, metrics[0]),
        comparison(candidates, metrics[0], options.baseline),
        inferred_groups(main),
        published(candidates),
        tables.settings(main, metrics),
    ]
    if (options.rows, options.columns) != (DEFAULT_ROWS, ()):
        keys = (options.rows, options.columns)
        known = entries() if options.published else []
        shown.insert(1, pivot.pivot(trials, *keys, metrics, options.criterion, known))
    shown.insert(-2, abstention(trials, options.rows, options.criterion))
    return [table for table in shown if table.records]


def _figures(
    judged: Judged, first: Metric, trials: Sequence[Trial], options: Options
) -> list[Drawing]:
    candidates = tables.chosen(judged)
    figures = [drawings.worst_against_average(candidates), best_of_n(judged, first)]
    datasets = list(dict.fromkeys(one.trial.dataset for one in candidates))
    figures += [
        drawings.learning_curves(candidates, f"learning_curves_{_slug(dataset)}", dataset)
        for dataset in datasets[: drawing.MOST]
    ]
    if (wanted := options.curve) is not None:
        metric = choices.metric("curve.metric", wanted.metric, trials, trials[0].rows[-1])
        _, cells = pivot.cells(trials, wanted.lines, [wanted.x], options.criterion)
        figures.append(drawings.curve(cells, wanted.x, metric))
        if quantities := choices.measured(wanted.quantities, trials):
            figures[-1] = drawings.quantities(cells, wanted.x, quantities)
    return [figure for figure in figures if figure.panels]


def _name(sweeps: Sequence[str]) -> str:
    """Return the name of the report's folder; file systems allow at most 255 bytes."""
    name = "+".join(sweeps)
    if len(name) <= 200:
        return name
    return f"{name[:190]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")
