"""Write tables and figures for a paper from sweeps: python -m spurcor.report sweep=..."""

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from spurcor import cli
from spurcor.config.check import check
from spurcor.config.nodes import Node
from spurcor.config.schema import OutputPaths, check_sweep_name
from spurcor.presentation import render
from spurcor.reports import Report, write_report
from spurcor.reports.document import left_out
from spurcor.reports.options import Options

if TYPE_CHECKING:
    from spurcor.tracking.messenger import Messenger

MOST_LINES = 20  # of missing or skipped points; report.md lists all


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Options of `spurcor.report`."""

    sweep: str | tuple[str, ...]
    tracker: dict[str, Node]
    paths: OutputPaths

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sweeps:
            raise ValueError("sweep=[] is empty; name at least one sweep")
        for name in self.sweeps:
            check_sweep_name(name)

    @property
    def sweeps(self) -> list[str]:
        """The names of the sweeps, without duplicates."""
        return list(dict.fromkeys([self.sweep] if isinstance(self.sweep, str) else self.sweep))


def main(cfg: DictConfig) -> int:
    """Write the report, show its main tables, and return the exit code."""
    config = check(cfg, ReportConfig)
    with _messenger(config) as messenger:
        report = write_report(config.paths.outputs, config.sweeps, config)
        if messenger is not None:
            messenger.attach(report.files, "report")
        show(report)
        if messenger is not None:
            messenger.finish()
    return 0


def _messenger(config: ReportConfig) -> "contextlib.AbstractContextManager[Messenger | None]":
    """Return a context that sends a single sweep's report to the trackers, if there are any."""
    if len(config.sweeps) > 1 or not config.tracker:
        return contextlib.nullcontext()
    from spurcor.system.terminal import log_to_terminal
    from spurcor.tracking.messenger import Messenger

    log_to_terminal()
    return Messenger(config.sweeps[0], config.tracker, config.paths.outputs)


def show(report: Report) -> None:
    """Print the main tables, the missing points and the paths of the files."""
    from spurcor.system.terminal import Terminal

    terminal = Terminal()
    for name in ("methods", "table", "selective"):
        if table := report.tables.get(name):
            if terminal.console.is_terminal:
                terminal.console.print(render.rich_table(table))
            else:
                terminal.say(render.markdown(table))
            terminal.say("\n".join(["", *table.notes]))
    lines = left_out(report.missing, report.skipped)
    if lines:
        counts = f"{len(report.missing)} points not done, {len(report.skipped)} unusable"
        more = [f"and {len(lines) - MOST_LINES} more, in report.md"][: len(lines) > MOST_LINES]
        terminal.say("\n".join([f"{counts}:", *lines[:MOST_LINES], *more, ""]))
    for path in [*sorted(report.files), *report.tuned]:
        terminal.say(str(path))


if __name__ == "__main__":
    sys.exit(cli.run(main, "report"))
