"""How well the groups that methods trained by match the annotated ones."""

from collections.abc import Iterator, Sequence

from spurcor.presentation.statistics import Summary
from spurcor.presentation.tables import Cell, Record, Table
from spurcor.reports.runs import number
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Judged

FIGURES = ("precision", "recall", "f1", "ami")


def inferred_groups(judged: Judged) -> Table:
    """Return a row per setting that trained by inferred groups, in % of TRAIN."""
    candidates = [one for found in judged.values() for one in found]
    notes = [
        "How well the minority of each class is found: all of it but its most frequent value,"
        " annotated or inferred. ami: adjusted mutual information within classes, 0 for groups"
        " drawn at random. Means over classes."
    ]
    return Table("groups", "Inferred groups", list(_records(candidates)), notes)


def _records(candidates: Sequence[Candidate]) -> Iterator[Record]:
    for one in candidates:
        found = [pick.trial.run.groups for pick in one.picks]
        trial = one.trial
        if trial.repair is not None or not any(found):
            continue
        cells: dict[str, Cell] = {"data set": trial.dataset, "method": trial.method}
        cells |= {"groups": str(trial.config.get("groups")), "setting": trial.setting}
        for key in FIGURES:
            values = [value for row in found if (value := number(row, key)) is not None]
            cells[key] = Summary.of([100 * value for value in values])
        yield cells
