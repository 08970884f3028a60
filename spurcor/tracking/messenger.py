"""Separate process that adds a report to the trackers; reads lines of JSON from stdin.

Started as `python -m spurcor.tracking.messenger`, it imports the trackers' packages, which takes
seconds, while the report is made.
"""

import gc
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from spurcor.config.check import check
from spurcor.config.nodes import Node, plain
from spurcor.config.schema import OutputPaths
from spurcor.system.companion import Companion
from spurcor.tracking import Record, Trackers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """The record that files are added to; the first line that the process reads."""

    sweep: str
    tracker: dict[str, Node]
    paths: OutputPaths


class Messenger(Companion):
    """Handle of the process that adds files to a sweep's record.

    Raises UserError if a tracker cannot be built.
    """

    def __init__(self, sweep: str, tracker: Mapping[str, Node], outputs: Path) -> None:
        super().__init__("spurcor.tracking.messenger")
        Trackers.build(tracker, outputs)  # raises UserError before the report is made
        self._address = Address(sweep, dict(tracker), OutputPaths(outputs))

    def __enter__(self) -> Self:
        super().__enter__()
        self.tell(plain(self._address))
        return self

    def attach(self, files: Sequence[Path], folder: str) -> None:
        """Start adding complete files; `finish` waits for the end."""
        self.tell({"files": [str(path) for path in files], "folder": folder})

    def finish(self) -> None:
        """Wait until the files are sent or given up, and log failures."""
        code, said = self.wait()
        sys.stderr.write(said)
        if code:  # the files are authoritative, so the report goes on
            log.warning("the trackers were not told of the report: exit code %d", code)


def main() -> None:
    """Add the files named on stdin to the record of a sweep."""
    gc.disable()  # a quarter of the imports' time, and they leave no garbage
    address = check(json.loads(sys.stdin.readline()), Address)
    trackers = Trackers.build(address.tracker, address.paths.outputs)
    trackers.prepare()
    line = sys.stdin.readline()
    if not line:  # no report was made
        return
    from spurcor.system.terminal import log_to_terminal

    log_to_terminal()
    order = json.loads(line)
    record = Record.of_sweep(address.paths.outputs / "sweeps" / address.sweep)
    trackers.attach(record, [Path(path) for path in order["files"]], order["folder"])
    trackers.close()


if __name__ == "__main__":
    main()
