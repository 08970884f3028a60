"""Send runs on disk to the trackers: python -m spurcor.sync [sweep=...]. Safe to repeat."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config.check import check
from spurcor.config.nodes import Node
from spurcor.config.schema import OutputPaths
from spurcor.errors import UserError

if TYPE_CHECKING:
    from spurcor.tracking import Trackers


@dataclass(frozen=True)
class SyncConfig:
    """Options of `spurcor.sync`."""

    tracker: dict[str, Node]
    paths: OutputPaths
    sweep: str | None = None


def main(cfg: DictConfig) -> int:
    """Send every run on disk, or only a sweep's, to the trackers and return the exit code."""
    config = check(cfg, SyncConfig)

    from spurcor.system.terminal import Terminal, log_to_terminal
    from spurcor.tracking import Trackers

    log_to_terminal()
    trackers = Trackers.build(config.tracker, config.paths.outputs)
    try:
        sent, skipped = _send(config, trackers)
    finally:
        trackers.close()
    terminal = Terminal()
    for directory, reason in skipped:
        terminal.say(f"skipped {directory}: {reason}")
    terminal.say(f"sent {sent} runs" if trackers.alive else "some runs were not sent")
    return 0 if trackers.alive else 1


def _send(config: SyncConfig, trackers: "Trackers") -> tuple[int, list[tuple[Path, str]]]:
    """Send the runs; return the number sent, and each skipped folder with the reason."""
    from spurcor.runs import lookup, mirror
    from spurcor.sweeps.manifest import manifest
    from spurcor.system.lock import holder, lock_of
    from spurcor.system.terminal import tracked
    from spurcor.tracking import Record

    outputs, sent, skipped = config.paths.outputs, 0, []
    wanted = None
    if config.sweep is not None:
        wanted = {Path(entry["directory"]) for entry in manifest(outputs, config.sweep)}
    for folder in sorted((outputs / "sweeps").glob("*/points.jsonl")):
        if config.sweep in (None, folder.parent.name):
            trackers.start(record := Record.of_sweep(folder.parent))
            trackers.finish(record, "FINISHED")
    directories = sorted((outputs / "runs").glob("*/*/*/seed*"))
    for directory in tracked(directories, "runs on disk", len(directories)):
        if not directory.name.removeprefix("seed").isdigit() or not directory.is_dir():
            continue
        if (owner := holder(lock_of(directory))) is not None:
            skipped.append((directory, f"process {owner['pid']} on {owner['host']} is using it"))
            continue
        if wanted is not None and directory not in wanted:
            continue
        try:
            mirror.mirror(directory, lookup.read_config(directory), trackers)
            sent += 1
        except (UserError, OSError, ValueError, KeyError) as error:  # the next run may be intact
            skipped.append((directory, str(error)))
    return sent, skipped


if __name__ == "__main__":
    sys.exit(cli.run(main, "sync"))
