"""Published figures, for comparison with ours."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spurcor.presentation.tables import Table
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Metric
from spurcor.system.places import CONF

Entry = Mapping[str, Any]


def entries() -> list[Entry]:
    """Load the figures in conf/published.yaml, with grids expanded to one entry per figure."""
    import yaml

    found = yaml.safe_load((CONF / "published.yaml").read_text(encoding="utf-8"))
    return [one for entry in found for one in _figures(entry)]


def published(shown: Sequence[Candidate]) -> Table:
    """Return a table of published figures for the shown methods whose options match."""
    known = entries()
    records = [
        {
            "data set": one.trial.dataset,
            "method": one.name,
            "metric": entry["metric"],
            "ours": Metric(entry["metric"], _column(entry["metric"])).of(one),
            "published": _figure(entry),
            "source": entry["source"],
            "note": entry.get("note", ""),
        }
        for one in shown
        for entry in known
        if _matches(entry, one)
    ]
    notes = [
        "Published figures rest on their authors' data, networks and tuning; compare with care."
    ]
    return Table("published", "Published figures", records, notes)


def known_figures(known: Sequence[Entry], one: Candidate, metric: str) -> str | None:
    """Return a candidate's published figures of a metric as the text of a cell, or None."""
    found = [_figure(e) for e in known if e["metric"] == metric and _matches(e, one)]
    return " / ".join(found) or None


def _figures(entry: Entry) -> Iterator[Entry]:
    """Yield the entry itself, or one entry per cell of its grid."""
    if "grid" not in entry:
        yield entry
        return
    grid = entry["grid"]
    rows = grid["figures"].items() if "row" in grid else [(None, grid["figures"])]
    common = {key: value for key, value in entry.items() if key != "grid"}
    for row, means in rows:
        for column, mean in zip(grid["values"], means, strict=True):
            if mean is not None:
                when = {**entry.get("when", {}), grid["column"]: column}
                if "row" in grid:
                    when[grid["row"]] = row
                yield {**common, "when": when, "mean": mean}


def _column(metric: str) -> str:
    """Return the column of a metric of TEST, or of a further test set (<name>/<metric>)."""
    return metric if "/" in metric else f"test/{metric}"


def _matches(entry: Entry, one: Candidate) -> bool:
    config = one.trial.config
    same = entry["dataset"] == config["dataset"] and entry["method"] == one.trial.method
    return same and all(config.get(key) == value for key, value in entry.get("when", {}).items())


def _figure(entry: Entry) -> str:
    deviation = entry.get("std")
    return f"{entry['mean']:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
