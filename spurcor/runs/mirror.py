"""Send a run on disk to the trackers."""

from pathlib import Path

from spurcor.config.nodes import Node
from spurcor.config.schema import TrainConfig
from spurcor.system.files import read_json, read_lines
from spurcor.system.shapes import Repair, Row
from spurcor.tracking import Record, Trackers
from spurcor.training import checkpoint


def mirror(directory: Path, config: TrainConfig, trackers: Trackers) -> None:
    """Send all rows, results and repairs of a run to the trackers; no process may be using it."""
    record = Record.of_run(directory, config)
    rows = read_lines(directory / "metrics.jsonl", Row)
    done = (directory / "done").exists()
    if not done:  # later rows are repeated on resume, with other times
        saved = directory / "checkpoint.pt"
        rows = rows[: checkpoint.count_rows(saved) if saved.exists() else 0]
    trackers.start(record)
    trackers.rows(record, rows)
    if not done:
        trackers.finish(record, "FAILED" if (directory / "failed").exists() else "KILLED")
        return
    trackers.report(record)
    for part in sorted(directory.glob("dfr/*/result.json")):
        found = read_json(part, Repair)
        node = Node("dfr", found.get("target", "spurcor.repair.dfr.Dfr"), found["options"])
        trackers.report(Record.of_dfr(directory, part.parent, node, config))
