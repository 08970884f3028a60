"""Every run as every criterion sees it, for whoever wants to plot or test something else."""

from collections.abc import Iterator, Mapping

from spurcor.reports.render import records_csv
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Cell, Judged
from spurcor.reports.trials import differing

WHERE_AND_WHEN = ("phase", "epoch", "step", "time", "seconds")


def listing(judged: Mapping[str, Judged]) -> str:
    """CSV, a line per run or repair and criterion: the row that it picked, fractions as recorded.

    Options are those that differ anywhere in the report.
    """
    candidates = [
        (criterion, one)
        for criterion, groups in judged.items()
        for found in groups.values()
        for one in found
    ]
    configs = {one.trial.identity: one.trial.config for _, one in candidates}
    options = differing(list(configs.values()))
    records = [record for c, one in candidates for record in _records(c, one, options)]
    return records_csv(records, list(dict.fromkeys(key for record in records for key in record)))


def _records(criterion: str, one: Candidate, options: list[str]) -> Iterator[Mapping[str, Cell]]:
    for pick in one.picks:
        trial, run, row = pick.trial, pick.trial.run, pick.row
        yield {
            "data set": trial.dataset,
            "method": trial.method,
            "setting": trial.setting,
            "seed": run.seed,
            "criterion": criterion,
            "chosen by": one.column,
            "chosen": "yes" if one.chosen and not one.undecided else "",
            "phase": row["phase"],
            "epoch": row["epoch"],
            "identity": run.identity,
            "dfr": trial.repair,
            "images seen": run.images,
            "run seconds": run.seconds,
            "commit": run.commit,
            "moved": "yes" if run.moved else "",
            "directory": str(run.directory),
            **{key: trial.config.get(key) for key in options},
            **{key: value for key, value in row.items() if key not in WHERE_AND_WHEN},
        }
