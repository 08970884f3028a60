"""Tables with rows and columns chosen by the user."""

from collections.abc import Iterable, Mapping, Sequence

from spurcor.presentation.tables import Cell, Record, Seeds, Table, short_names
from spurcor.reports.published import Entry, known_figures
from spurcor.reports.selection import Candidate, judge
from spurcor.reports.tables import Metric
from spurcor.reports.trials import Trial, show_value, with_settings

Place = tuple[object, ...]
PUBLISHED = " published"  # suffix of column titles
Cells = dict[Place, dict[Place, list[Candidate]]]


def cells(
    trials: Sequence[Trial], rows: Sequence[str], columns: Sequence[str], criterion: str
) -> tuple[list[str], Cells]:
    """Return the row keys, and the candidates by values of the row keys and of the column keys.

    Nothing is selected over a key that is a row or a column. Data set, method and version of the
    splits become row keys, too, where a cell would otherwise mix several of them.
    """
    trials = [trial for trial in trials if all(trial.value(key) is not None for key in columns)]
    trials = with_settings(trials, without=[*rows, *columns])
    rows = list(rows)
    for key in ("dataset", "method", "splits"):
        if key not in rows and _mixed(trials, key, rows, columns):
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


def _mixed(trials: Sequence[Trial], key: str, rows: Sequence[str], columns: Sequence[str]) -> bool:
    """Return whether some cell holds trials with different values of the key."""
    values: dict[tuple[Place, Place], set[object]] = {}
    for trial in trials:
        cell = (_place(trial, rows), _place(trial, columns))
        values.setdefault(cell, set()).add(trial.value(key))
    return any(len(found) > 1 for found in values.values())


def pivot(
    trials: Sequence[Trial],
    rows: Sequence[str],
    columns: Sequence[str],
    metrics: Sequence[Metric],
    criterion: str,
    known: Sequence[Entry] = (),
) -> Table:
    """Return a table of mean and standard deviation over seeds by configuration keys.

    Published figures `known` are shown beside ours.
    """
    rows, found = cells(trials, rows, columns, criterion)
    names = short_names([*rows, *columns])
    places = in_order(place for row in found.values() for place in row)
    titles = {place: _titles(columns, place, names, metrics) for place in places}
    records = []
    for row in in_order(found):
        record: dict[str, Cell] = dict(shown_keys(rows, row, names))
        for place in places:
            one = _decided(found[row].get(place, []))
            if not columns and one is not None:
                record["seeds"] = Seeds(len(one.picks), one.expected)
            record |= _figures(one, titles[place], known)
        records.append(record)
    lower_is_better = {
        title for own in titles.values() for title, metric in own.items() if metric.lower_is_better
    }
    notes = _notes(found, metrics, criterion)
    return Table("table", "Table", _without_unpublished(records), notes, sorted(lower_is_better))


def _decided(cell: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate that a cell shows; None if it holds several or none."""
    return cell[0] if len(cell) == 1 else None


def _titles(
    columns: Sequence[str], place: Place, names: Mapping[str, str], metrics: Sequence[Metric]
) -> dict[str, Metric]:
    """Return metrics by column title; a single metric is not named in titles."""
    options = zip(columns, place, strict=True)
    keys = [f"{names[key]}={show_value(value)}" for key, value in options]
    if keys and len(metrics) == 1:
        return {" ".join(keys): metrics[0]}
    return {" ".join([*keys, metric.name]): metric for metric in metrics}


def _figures(
    one: Candidate | None, titles: Mapping[str, Metric], known: Sequence[Entry]
) -> dict[str, Cell]:
    """Return our figures, each followed by the published one if any are known."""
    figures: dict[str, Cell] = {}
    for title, metric in titles.items():
        figures[title] = None if one is None else metric.of(one)
        if known:
            published = None if one is None else known_figures(known, one, metric.name)
            figures[f"{title}{PUBLISHED}"] = published
    return figures


def _without_unpublished(records: Sequence[Record]) -> list[Record]:
    """Drop columns of published figures that are empty in all records."""
    titles = [title for title in (records[0] if records else ()) if title.endswith(PUBLISHED)]
    empty = [title for title in titles if all(record[title] is None for record in records)]
    return [{k: v for k, v in record.items() if k not in empty} for record in records]


def _notes(found: Cells, metrics: Sequence[Metric], criterion: str) -> list[str]:
    """Return notes on selection, the number of seeds, and empty cells."""
    what = ", ".join(metric.name for metric in metrics)
    notes = [f"Test {what} in %. `{criterion}` chose epochs and all settings that are not shown."]
    shown = [cell for row in found.values() for cell in row.values()]
    if seeds := {len(one.picks) for cell in shown for one in cell}:
        between = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(*seeds)
        notes.append(f"Seeds per cell: {between}.")
    if undecided := sum(len(cell) > 1 for cell in shown):
        notes.append(
            f"{undecided} cells are empty because nothing can select among the settings in them:"
            " make the options that differ rows or columns, or keep one of them."
        )
    return notes


def in_order(places: Iterable[Place]) -> list[Place]:
    """Return the unique places: numbers in ascending order, other values as they appear."""
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
    """Return the cells of a record that name its row."""
    titles = {**(names or short_names(keys)), "dataset": "data set"}
    return {titles[key]: _show(value) for key, value in zip(keys, values, strict=True)}


def _place(trial: Trial, keys: Sequence[str]) -> Place:
    return tuple(trial.value(key) for key in keys)


def _show(value: object) -> str | None:
    return None if value is None else show_value(value)
