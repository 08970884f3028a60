"""Figures of papers beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from spurcor.config import CONF
from spurcor.reports.selection import Candidate
from spurcor.reports.tables import Metric, Table


def published(shown: Sequence[Candidate]) -> Table:
    """What conf/published.yaml holds of the methods shown, under the options that it names."""
    import yaml

    entries = yaml.safe_load((CONF / "published.yaml").read_text(encoding="utf-8"))
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
        for entry in entries
        if _matches(entry, one)
    ]
    notes = [
        "Published figures rest on their authors' data, networks and tuning; compare with care."
    ]
    return Table("published", "Published figures", records, notes)


def _column(metric: str) -> str:
    """The rows' column of a metric of TEST, or of a further test set as <name>/<metric>."""
    return metric if "/" in metric else f"test/{metric}"


def _matches(entry: Mapping[str, Any], one: Candidate) -> bool:
    config = one.trial.config
    same = entry["dataset"] == config["dataset"] and entry["method"] == one.trial.method
    return same and all(config.get(key) == value for key, value in entry.get("when", {}).items())


def _figure(entry: Mapping[str, Any]) -> str:
    deviation = entry.get("std")
    return f"{entry['mean']:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
