"""Table of selective classification: errors on the samples that a network answers."""

import re
from collections.abc import Sequence

from spurcor.presentation.tables import Record, Seeds, Table
from spurcor.reports.pivot import cells, shown_keys
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Metric
from spurcor.reports.trials import Trial

LOWER_IS_BETTER = ("error", "AURC")  # prefixes of column titles
ERROR = re.compile(r"(selective[^/]*/[^/]+)/error_at_([^/]+)/test")


def abstention(trials: Sequence[Trial], rows: Sequence[str], criterion: str) -> Table:
    """Return a table of errors at nominal coverages per row keys and selection rule.

    Values in %, mean and standard deviation over seeds.
    """
    rows, found = cells(trials, rows, (), criterion)
    records: list[Record] = []
    furthest = 0.0  # largest |coverage on TEST - nominal coverage|, in percentage points
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
        "Error in % on the answered samples of TEST. Thresholds are those that answer the nominal"
        f" share of VAL; the share of TEST they answer is within {furthest:.1f} points of it."
        " `worst`: worst-group accuracy on the answered samples. AURC: the mean error over all"
        " coverages, in %. Every run is judged by its selected weights.",
    ]
    titles = {title for record in records for title in record}
    lower = sorted(title for title in titles if title.startswith(LOWER_IS_BETTER))
    return Table("selective", "Selective classification", records, notes, lower)


def _rules(one: Candidate) -> dict[str, list[str]]:
    """Return the nominal coverages of each rule in ascending order, as in column names."""
    found: dict[str, list[str]] = {}
    for match in filter(None, map(ERROR.fullmatch, one.trial.measured)):
        found.setdefault(match[1], []).append(match[2])
    return {rule: sorted(coverages, key=float) for rule, coverages in found.items()}


def _errors(one: Candidate, rule: str, coverages: Sequence[str]) -> Record:
    columns = {f"error at {nominal}": f"error_at_{nominal}" for nominal in coverages}
    columns |= {f"worst at {coverages[0]}": f"worst_at_{coverages[0]}", "AURC": "aurc"}
    return {title: Metric(title, f"{rule}/{name}/test").of(one) for title, name in columns.items()}
