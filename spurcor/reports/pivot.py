"""Tables by rows and columns of the reader's choice."""

from collections.abc import Iterable, Mapping, Sequence

from spurcor.presentation.tables import Cell, Record, Seeds, Table
from spurcor.reports.published import Entry, beside
from spurcor.reports.selection import Candidate, judge
from spurcor.reports.tables import Metric
from spurcor.reports.trials import Trial, short_names, show_value, with_settings

Place = tuple[object, ...]
PUBLISHED = " published"  # ends the title of a column of figures that are not ours
Cells = dict[Place, dict[Place, list[Candidate]]]


def cells(
    trials: Sequence[Trial], rows: Sequence[str], columns: Sequence[str], criterion: str
) -> tuple[list[str], Cells]:
    """Candidates by the values of the row keys and of the column keys.

    Nothing is selected over a key that is a row or a column. Data set, method and version of the
    splits join the rows where a cell would otherwise mix two of them.
    """
    trials = [trial for trial in trials if all(trial.value(key) is not None for key in columns)]
    trials = with_settings(trials, without=[*rows, *columns])
    rows = list(rows)
    for key in ("dataset", "method", "splits"):
        mixed: dict[tuple[Place, Place], set[object]] = {}
        for trial in trials:
            place = (_place(trial, rows), _place(trial, columns))
            mixed.setdefault(place, set()).add(trial.value(key))
        if key not in rows and any(len(values) > 1 for values in mixed.values()):
            rows.append(key)
    groups: dict[Place, dict[Place, list[Trial]]] = {}
    for trial in trials:
        row = groups.setdefault(_place(trial, rows), {})
        row.setdefault(_place(trial, columns), []).append(trial)
    return rows, {
        row: {
            column: [one for one in judge(group, criterion) if one.chosen]
            for column, group in found.items()
        }
        for row, found in groups.items()
    }


def pivot(
    trials: Sequence[Trial],
    rows: Sequence[str],
    columns: Sequence[str],
    metrics: Sequence[Metric],
    criterion: str,
    known: Sequence[Entry] = (),
) -> Table:
    """Mean and deviation over seeds, by configuration keys; published figures `known` beside."""
    rows, found = cells(trials, rows, columns, criterion)
    names = short_names([*rows, *columns])
    places = in_order(place for row in found.values() for place in row)
    records, undecided = [], 0
    falling: set[str] = set()
    for row in in_order(found):
        record: dict[str, Cell] = dict(shown_keys(rows, row, names))
        for place in places:
            options = zip(columns, place, strict=True)
            title = " ".join(f"{names[key]}={show_value(value)}" for key, value in options)
            candidates = found[row].get(place, [])
            undecided += len(candidates) > 1
            one = candidates[0] if len(candidates) == 1 else None
            if not columns and one is not None:
                record["seeds"] = Seeds(len(one.picks), one.expected)
            for metric in metrics:
                shown = " ".join(filter(None, (title, metric.name if len(metrics) > 1 else "")))
                record[shown or metric.name] = metric.of(one) if one is not None else None
                falling.update([shown or metric.name] if metric.falling else ())
                if known:
                    figure = beside(known, one, metric.name) if one is not None else None
                    record[f"{shown or metric.name}{PUBLISHED}"] = figure
        records.append(record)
    titles = [title for title in records[0] if title.endswith(PUBLISHED)] if records else []
    empty = [title for title in titles if all(record[title] is None for record in records)]
    records = [{k: v for k, v in record.items() if k not in empty} for record in records]
    what = ", ".join(metric.name for metric in metrics)
    notes = [f"Test {what} in %, epochs and whatever is no row or column chosen by `{criterion}`."]
    seeds = {len(one.picks) for row in found.values() for cell in row.values() for one in cell}
    if seeds:
        between = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(*seeds)
        notes.append(f"Seeds per cell: {between}.")
    if undecided:
        notes.append(
            f"{undecided} cells are empty because nothing can select among the settings in them:"
            " make the options that differ rows or columns, or keep one of them."
        )
    return Table("table", "Table", records, notes, sorted(falling))


def in_order(places: Iterable[Place]) -> list[Place]:
    """Each place once: numbers by size, the rest in order of appearance."""
    found = list(dict.fromkeys(places))
    ranks = []
    for values in zip(*found, strict=True):
        known = list(dict.fromkeys(values))
        if all(isinstance(value, int | float) for value in known):
            known.sort()
        ranks.append({value: rank for rank, value in enumerate(known)})
    return sorted(found, key=lambda place: [rank[v] for rank, v in zip(ranks, place, strict=True)])


def shown_keys(
    keys: Sequence[str], values: Place, names: Mapping[str, str] | None = None
) -> Record:
    """The cells of a record that say which row of the keys it is."""
    titles = {**(names or short_names(keys)), "dataset": "data set"}
    return {titles[key]: _show(value) for key, value in zip(keys, values, strict=True)}


def _place(trial: Trial, keys: Sequence[str]) -> Place:
    return tuple(trial.value(key) for key in keys)


def _show(value: object) -> str | None:
    return None if value is None else show_value(value)
