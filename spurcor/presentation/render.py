"""Render tables as Markdown, LaTeX and CSV, and for a terminal."""

import csv
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spurcor.presentation.statistics import Summary
from spurcor.presentation.tables import ORACLE, Cell, Interval, Record, Seeds, Table

if TYPE_CHECKING:
    from rich.table import Table as RichTable

BEGIN_BOLD, END_BOLD = "\x01", "\x02"  # replaced after LaTeX's special characters are escaped
# Special characters of Markdown; an underscore within a word is harmless.
MARKDOWN_SPECIAL = re.compile(r"[\\`*<|]|\b_|_\b")
LATEX_COMMANDS = {BEGIN_BOLD: r"\textbf{", END_BOLD: "}", "±": r"$\pm$"}


def show(cell: Cell) -> str:
    """Return a cell as text."""
    if cell is None:
        return "-"
    if isinstance(cell, Interval):
        return cell.summary.interval
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def markdown(table: Table) -> str:
    """Return the table as Markdown, without its title and notes."""
    from tabulate import tabulate  # type: ignore[import-untyped]

    columns = _shown(table)
    rows = [[literal(show(record.get(key))) for key in columns] for record in table.records]
    alignment = [_alignment(table, key) for key in columns]
    heads = [literal(key) for key in columns]
    return str(tabulate(rows, heads, "pipe", colalign=alignment, disable_numparse=True))


def literal(text: str) -> str:
    """Return text escaped for Markdown; names may contain any character that folder names may."""
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def latex(table: Table) -> str:
    """Return a booktabs tabular with the best mean per column and data set in bold."""
    from tabulate import tabulate

    columns = _shown(table)
    best = _best(table, columns)
    rows = []
    for place, record in enumerate(table.records):
        cells = [show(record.get(key)) for key in columns]
        rows.append(
            [
                f"{BEGIN_BOLD}{text}{END_BOLD}" if (place, key) in best else text
                for key, text in zip(columns, cells, strict=True)
            ]
        )
    alignment = [_alignment(table, key) for key in columns]
    text = str(tabulate(rows, columns, "latex_booktabs", colalign=alignment, disable_numparse=True))
    for mark, command in LATEX_COMMANDS.items():
        text = text.replace(mark, command)
    return f"% \\usepackage{{booktabs}}\n{text}\n"


def csv_text(table: Table) -> str:
    """Return the table as CSV in full precision, with mean, std, low and high of each summary."""
    records = [_csv_record(record) for record in table.records]
    columns = list(dict.fromkeys(key for record in records for key in record))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([record.get(key) for key in columns] for record in records)
    return buffer.getvalue()


def rich_table(table: Table) -> "RichTable":
    """Return the table for a terminal, without intervals, which are too wide."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    drawn = RichTable(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    wide = {k for record in table.records for k, v in record.items() if isinstance(v, Interval)}
    columns = [key for key in _shown(table) if key not in wide]
    for key in columns:
        right = _alignment(table, key) == "right"
        drawn.add_column(key, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for record in table.records:
        drawn.add_row(*(show(record.get(key)) for key in columns))
    return drawn


def _shown(table: Table) -> list[str]:
    """Return the columns that are not empty."""
    empty = (None, "")
    return [key for key in table.columns if any(r.get(key) not in empty for r in table.records)]


def _alignment(table: Table, key: str) -> str:
    return "left" if any(isinstance(record.get(key), str) for record in table.records) else "right"


def _best(table: Table, columns: Sequence[str]) -> set[tuple[int, str]]:
    """Return row and column of the best mean per column and data set, excluding the oracle."""
    best: dict[tuple[object, str], float] = {}
    means: dict[tuple[int, str], tuple[tuple[object, str], float]] = {}
    for place, record in enumerate(table.records):
        if str(record.get("criterion", "")).startswith(ORACLE):
            continue
        for key in columns:
            cell = record.get(key)
            if isinstance(cell, Summary):
                column = (record.get("data set"), key)
                mean = -cell.mean if key in table.lower_is_better else cell.mean
                means[place, key] = (column, mean)
                best[column] = max(best.get(column, mean), mean)
    return {place for place, (column, mean) in means.items() if mean == best[column]}


def _csv_record(record: Record) -> dict[str, Cell]:
    flat: dict[str, Cell] = {}
    for key, cell in record.items():
        if isinstance(cell, Summary):
            flat |= {
                f"{key}_{part}": getattr(cell, part) for part in ("mean", "std", "low", "high")
            }
        elif isinstance(cell, Seeds):
            flat |= {key: cell.count, f"{key}_expected": cell.expected}
        elif cell is not None and not isinstance(cell, Interval):
            flat[key] = cell
    return flat
