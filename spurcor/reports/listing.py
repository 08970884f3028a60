"""runs.csv: each run under each criterion, for custom plots and tests."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Judged
from spurcor.reports.trials import differing

HEAD = (
    "data set", "method", "setting", "seed", "criterion", "chosen by", "chosen", "phase", "epoch",
    "identity", "dfr", "images seen", "seconds", "commit", "moved", "directory",
)  # fmt: skip
OMITTED = {"phase", "epoch", "step", "time", "seconds"}  # already in HEAD, or not useful here


def listing(judged: Mapping[str, Judged]) -> str:
    """Return CSV text with a line per criterion and run or repair: the selected row, as fractions.

    Its option columns are those that differ anywhere in the report.
    """
    candidates = [
        (criterion, one)
        for criterion, groups in judged.items()
        for found in groups.values()
        for one in found
    ]
    configs = {one.trial.identity: one.trial.config for _, one in candidates}
    options = differing(list(configs.values()))
    columns = {key: None for _, one in candidates for pick in one.picks for key in pick.row}
    figures = [key for key in columns if key not in OMITTED]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*HEAD, *options, *figures])
    for criterion, one in candidates:
        writer.writerows(_lines(criterion, one, options, figures))
    return buffer.getvalue()


def _lines(
    criterion: str, one: Candidate, options: Sequence[str], figures: Sequence[str]
) -> Iterator[list[Any]]:
    trial, chosen = one.trial, "yes" if one.chosen and not one.undecided else ""
    shared = [trial.config.get(key) for key in options]
    for pick in one.picks:
        run, row = pick.trial.run, pick.row
        yield [
            *(trial.dataset, trial.method, trial.setting, run.seed, criterion, one.column, chosen),
            *(row["phase"], row["epoch"], run.identity, trial.repair, run.images, run.seconds),
            *(run.commit, "yes" if run.moved else "", run.directory),
            *shared,
            *map(row.get, figures),
        ]
