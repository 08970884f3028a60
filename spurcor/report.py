"""A paper's tables and figures from the files of sweeps: python -m spurcor.report sweep=..."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config import Node, OutputPaths, check, check_sweep_name
from spurcor.reports import Report, render, write_report
from spurcor.reports.document import absent
from spurcor.reports.options import Options

MOST_LINES = 20  # of what is missing; all of it is in report.md


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Which sweeps, and what of them."""

    sweep: str | tuple[str, ...]
    tracker: dict[str, Node]
    paths: OutputPaths

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sweeps:
            raise ValueError("sweep=[] names no sweep")
        for name in self.sweeps:
            check_sweep_name(name)

    @property
    def sweeps(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys([self.sweep] if isinstance(self.sweep, str) else self.sweep))


def main(cfg: DictConfig) -> int:
    """Write the report, show its methods; returns the exit code."""
    config = check(cfg, ReportConfig)
    report = write_report(config.paths.outputs, config.sweeps, config)
    show(report)
    if len(config.sweeps) == 1:
        attach(report, config.sweeps[0], config.paths.outputs, config.tracker)
    return 0


def attach(report: Report, sweep: str, outputs: Path, tracker: Mapping[str, Node]) -> None:
    """Show the report in the trackers, below the sweep's own record."""
    from spurcor.launcher import log_to_terminal
    from spurcor.tracking import Record, Trackers

    log_to_terminal()
    trackers = Trackers.build(tracker, outputs)
    record = Record.of_sweep(outputs / "sweeps" / sweep)
    trackers.attach(record, report.files, "report")
    trackers.close()


def show(report: Report) -> None:
    """The methods, the pivot if one was asked for, what is missing, and where the files are."""
    from spurcor.console import Terminal

    terminal = Terminal()
    for name in ("methods", "table"):
        if table := report.tables.get(name):
            if terminal.console.is_terminal:
                terminal.console.print(render.rich_table(table))
            else:
                terminal.say(render.markdown(table))
            terminal.say("\n".join(["", *table.notes]))
    lines = absent(report.missing, report.skipped)
    if lines:
        counts = f"{len(report.missing)} points not done, {len(report.skipped)} unusable"
        more = [f"and {len(lines) - MOST_LINES} more, in report.md"][: len(lines) > MOST_LINES]
        terminal.say("\n".join([f"{counts}:", *lines[:MOST_LINES], *more, ""]))
    for path in sorted(report.files):
        terminal.say(str(path))


if __name__ == "__main__":
    sys.exit(cli.run(main, "report"))
