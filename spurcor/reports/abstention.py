"""The table of selective classification: where a network errs although it may abstain."""

import re
from collections.abc import Sequence

from spurcor.presentation.tables import Record, Seeds, Table
from spurcor.reports.pivot import cells, shown_keys
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Metric
from spurcor.reports.trials import Trial

LESS = ("error", "AURC")  # is better
ERROR = re.compile(r"(selective[^/]*/[^/]+)/error_at_([^/]+)/test")


def abstention(trials: Sequence[Trial], rows: Sequence[str], criterion: str) -> Table:
    """By the row keys and by rule, errors at nominal coverages: mean and deviation over seeds."""
    rows, found = cells(trials, rows, (), criterion)
    records: list[Record] = []
    furthest = 0.0
    for row, by_column in found.items():
        for one in by_column[()]:
            seeds = Seeds(len(one.picks), one.expected)
            for rule, coverages in _rules(one).items():
                head = {**shown_keys(rows, row), "rule": rule.removeprefix("selective/")}
                records.append({**head, "seeds": seeds, **_errors(one, rule, coverages)})
                for nominal in coverages:
                    met = one.values(f"{rule}/coverage_at_{nominal}/test")
                    furthest = max([furthest, *(abs(100 * m - float(nominal)) for m in met)])
    notes = [
        "Error in % of what is answered on TEST, at thresholds that answer the nominal share of"
        f" VAL; TEST was answered to within {furthest:.1f} points of it. `worst`: accuracy of the"
        " worst group there. AURC: the mean error over all coverages, in %. All of the weights that"
        " each run selected.",
    ]
    falling = {title for record in records for title in record if title.startswith(LESS)}
    return Table("selective", "Selective classification", records, notes, sorted(falling))


def _rules(one: Candidate) -> dict[str, list[str]]:
    """The nominal coverages of every rule, as named in the columns, rising."""
    found: dict[str, list[str]] = {}
    for match in filter(None, map(ERROR.fullmatch, one.trial.measured)):
        found.setdefault(match[1], []).append(match[2])
    return {rule: sorted(coverages, key=float) for rule, coverages in found.items()}


def _errors(one: Candidate, rule: str, coverages: Sequence[str]) -> Record:
    columns = {f"error at {nominal}": f"error_at_{nominal}" for nominal in coverages}
    columns |= {f"worst at {coverages[0]}": f"worst_at_{coverages[0]}", "AURC": "aurc"}
    return {title: Metric(title, f"{rule}/{name}/test").of(one) for title, name in columns.items()}
