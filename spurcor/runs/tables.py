"""The table that is shown at the end of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from spurcor.presentation.tables import percent
from spurcor.system.terminal import Terminal
from spurcor.tracking import Trackers

MANY_GROUPS = 16  # beyond this the table shows the worst groups only


def show_result(
    terminal: Terminal, result: Mapping[str, Any], directory: Path, how: str, trackers: Trackers
) -> None:
    """Print the table of groups, the run's directory, and the trackers' addresses."""
    run = result["run"]
    terminal.say("")
    terminal.say(f"{run['dataset']} {run['method']} seed {run['seed']}: {how}")
    terminal.console.print(group_table(result))
    terminal.say(f"run     {directory}")
    for title, address in trackers.addresses.items():
        terminal.say(f"{title:7} {address}")


def group_table(result: Mapping[str, Any]) -> Table:
    """Return a table of test accuracy per group and class after each phase and DFR.

    Precision, recall and F1 of multi-label tasks, summaries over groups, and the worst group of
    each further test set follow.
    """
    table = Table("test group", title_justify="left")
    table.add_column("count", justify="right")
    columns = dict(result.get("phases", {}))
    columns |= {} if result["test"] is None else {result["run"]["method"]: result}
    columns |= {
        f"+ {part.get('repair', 'DFR')} {name}": part
        for name, part in result["dfr"].items()
        if part["test"]
    }
    for name in columns:
        table.add_column(name, justify="right")
    reports = [part["test"] for part in columns.values()]
    if not reports:
        return table
    first = reports[0]
    shares = [
        {name: group["accuracy"] for name, group in report["groups"].items()} for report in reports
    ]
    names = [name for name, group in first["groups"].items() if group["count"]]
    if len(names) > MANY_GROUPS:
        names = sorted(names, key=lambda name: shares[0][name] or 0.0)[:MANY_GROUPS]
        table.caption = f"the {MANY_GROUPS} worst of {len(first['groups'])} groups"
    for name in names:
        cells = [percent(share.get(name)) for share in shares]
        table.add_row(name, str(first["groups"][name]["count"]), *cells)
    table.add_section()
    classes = [report.get("classes", {}) for report in reports]  # absent from older results
    if all(classes) and len(classes[0]) < min(len(first["groups"]), MANY_GROUPS):
        for name in classes[0]:
            table.add_row(name, "", *(percent(accuracy.get(name)) for accuracy in classes))
        table.add_section()
    _add_labels(table, [report.get("labels", {}) for report in reports])
    for key in ("worst", "average", "adjusted", "aligned", "conflicting"):
        table.add_row(key, "", *(percent(report[key]) for report in reports))
    for name in next(iter(columns.values()))["tests"]:
        cells = [percent(part["tests"].get(name, {}).get("worst")) for part in columns.values()]
        table.add_row(f"{name}: worst", "", *cells)
    return table


def _add_labels(table: Table, labels: Sequence[Mapping[str, Any]]) -> None:
    """Add precision, recall and F1 of each label, if every report has them."""
    for name in labels[0] if all(labels) else ():
        for key in ("precision", "recall", "f1"):
            cells = [percent(scores.get(name, {}).get(key)) for scores in labels]
            table.add_row(f"{name}: {key}", "", *cells)
