"""report.md: all tables and figures with their notes, and the missing points."""

from collections.abc import Iterator, Mapping, Sequence

from spurcor.presentation.drawing import Drawing
from spurcor.presentation.render import literal, markdown
from spurcor.presentation.tables import ORACLE, Table
from spurcor.reports.collection import Collection, Missing
from spurcor.reports.options import Options
from spurcor.reports.trials import show_value

AFTER_FIGURES = ("settings",)  # long and rarely read


def document(
    sweeps: Sequence[str],
    found: Collection,
    shown: Sequence[Table],
    figures: Sequence[Drawing],
    options: Options,
) -> str:
    """Return the Markdown text of a report; it depends on the files of the runs only."""
    parts = [f"# {', '.join(sweeps)}", *_opening(found, options), *found.notes]
    for table in shown:
        parts += _section(table) if table.name not in AFTER_FIGURES else []
    for figure in figures:
        parts += [f"## {figure.title}", f"![{figure.title}]({figure.name}.png)"]
        parts += figure.notes
    for table in shown:
        parts += _section(table) if table.name in AFTER_FIGURES else []
    parts += _left_out_section(found)
    if shown:
        parts += [
            "## Files",
            "`methods`, `criteria`, `comparison`, `settings` as CSV hold these tables at full"
            " precision, in %; `methods.tex` and `criteria.tex` need the package booktabs;"
            " `runs.csv` has a line per run and criterion, fractions as recorded.",
        ]
    return "\n\n".join(parts) + "\n"


def left_out(missing: Sequence[Missing], skipped: Mapping[str, str]) -> list[str]:
    """Return a line per unfinished point and per unreadable directory, with the reason."""
    lines = [f"{one.status}: {one.overrides} ({one.sweep}) {one.message}" for one in missing]
    return [line.strip() for line in lines] + [f"left out: {k}: {v}" for k, v in skipped.items()]


def _section(table: Table) -> list[str]:
    return [f"## {table.title}", markdown(table), *table.notes]


def _opening(found: Collection, options: Options) -> Iterator[str]:
    runs = found.runs
    if not runs:
        yield "No run is finished."
        return
    read = "test data were only read off there"
    if options.criterion == ORACLE:
        read = "it reads test data, so these figures are bounds, not results"
    repairs = sum(trial.repair is not None for trial in found.trials)
    yield (
        f"{len(runs)} runs, {repairs} repairs. Test accuracy in %, mean ± sample standard deviation"
        f" over seeds, with a 95 % t interval of the mean; `{options.criterion}` chose the epoch of"
        f" each run and the setting of each method; {read}."
    )
    commits = list(dict.fromkeys(run.commit for run in runs))
    yield f"Code: {', '.join(commits)}{' (+: with changes)' if '+' in ''.join(commits) else ''}."
    if moved := sum(run.moved for run in runs):
        yield (
            f"{moved} runs were continued on another device, or with another precision or number of"
            " threads."
        )
    if options.keep:
        kept = " and ".join(f"{key} {show_value(value)}" for key, value in options.keep.items())
        yield f"Kept: only {kept}."


def _left_out_section(found: Collection) -> Iterator[str]:
    if found.missing or found.skipped:
        yield f"## Not in the tables: {len(found.missing)} not done, {len(found.skipped)} unusable"
    if lines := left_out(found.missing, found.skipped):
        yield "\n".join(f"- {literal(line)}" for line in lines)
