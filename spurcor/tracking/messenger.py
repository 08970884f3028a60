"""Shows a report in the trackers: python -m spurcor.tracking.messenger, lines of JSON on stdin.

A process of its own: it imports the trackers' packages, seconds, while the report is made.
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
    """Where files are to be shown: the process's first line."""

    sweep: str
    tracker: dict[str, Node]
    paths: OutputPaths


class Messenger(Companion):
    """The process that shows files below a sweep; a tracker that cannot be built is refused."""

    def __init__(self, sweep: str, tracker: Mapping[str, Node], outputs: Path) -> None:
        super().__init__("spurcor.tracking.messenger")
        Trackers.build(tracker, outputs)  # for the refusal, before there is anything to show
        self._address = Address(sweep, dict(tracker), OutputPaths(outputs))

    def __enter__(self) -> Self:
        super().__enter__()
        self.tell(plain(self._address))
        return self

    def attach(self, files: Sequence[Path], folder: str) -> None:
        """Begin to show files that are complete; `finish` waits for it."""
        self.tell({"files": [str(path) for path in files], "folder": folder})

    def finish(self) -> None:
        """Wait until the trackers have the files or were given up, and say which were."""
        code, said = self.wait()
        sys.stderr.write(said)
        if code:  # the files are the record: this stops no report
            log.warning("the trackers were not told of the report: exit code %d", code)


def main() -> None:
    """Show what stdin names."""
    gc.disable()  # imports leave no garbage: looking for it takes a quarter of their time
    address = check(json.loads(sys.stdin.readline()), Address)
    trackers = Trackers.build(address.tracker, address.paths.outputs)
    trackers.prepare()
    line = sys.stdin.readline()
    if not line:  # there is no report after all
        return
    from spurcor.system.terminal import log_to_terminal

    log_to_terminal()
    order = json.loads(line)
    record = Record.of_sweep(address.paths.outputs / "sweeps" / address.sweep)
    trackers.attach(record, [Path(path) for path in order["files"]], order["folder"])
    trackers.close()


if __name__ == "__main__":
    main()
